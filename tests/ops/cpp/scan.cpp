// Runs the CPU kernels forward and backward: y against the formula, the gradients against differences of it.
#include "problem.h"

namespace {

// sum(dy * y) by the definition; `y` receives y.
double objective(const Problem<double>& p, const std::vector<double>& x, const std::vector<double>& parameters, std::vector<double>* y) {
  const Sizes& s = p.sizes;
  auto* xs = const_cast<double*>(x.data());
  auto* ps = const_cast<double*>(parameters.data());
  const cgspn::ImageView xv = p.image(xs);
  const cgspn::AffinityView a = p.affinity(ps);
  const cgspn::DirectionView lam = p.gate(ps, 0), u = p.gate(ps, 1), out = p.output(nullptr);
  std::vector<double> result(p.dy.size(), 0.0);
  double total = 0;
  for (int64_t b = 0; b < s.b; ++b) {
    for (int d = 0; d < s.directions; ++d) {
      const bool vertical = d < 2, reversed = d % 2 == 1;
      const int64_t lines = vertical ? s.h : s.w, length = vertical ? s.w : s.h;
      for (int64_t c = 0; c < s.c; ++c) {
        std::vector<double> before(length, 0.0), here(length);
        for (int64_t i = 0; i < lines; ++i) {
          const int64_t line = reversed ? lines - 1 - i : i;
          const bool first = i == 0 || (s.chunk > 0 && i % s.chunk == 0);
          for (int64_t j = 0; j < length; ++j) {
            const int64_t row = vertical ? line : j, column = vertical ? j : line;
            const auto gate = [&](const cgspn::DirectionView& v) {
              return static_cast<double*>(v.data)[b * v.b + d * v.d + c * v.c + row * v.h + column * v.w];
            };
            double mixed = 0, sum = 0;
            for (int k = -1; k <= 1 && !first; ++k) {
              if (j + k < 0 || j + k >= length) continue;
              const double logit = static_cast<double*>(a.data)[b * a.b + d * a.d + (k + 1) * a.k + c * a.c + row * a.h + column * a.w];
              const double w = s.normalize ? 1 / (1 + std::exp(-std::max(logit, -40.0))) : logit;
              sum += w;
              mixed += w * before[j + k];
            }
            if (s.normalize && !first) mixed /= sum;
            here[j] = mixed + gate(lam) * static_cast<double*>(xv.data)[b * xv.b + c * xv.c + row * xv.h + column * xv.w];
            const int64_t at = b * out.b + d * out.d + c * out.c + row * out.h + column * out.w;
            result[at] += gate(u) * here[j];
            total += p.dy[at] * gate(u) * here[j];
          }
          before = here;
        }
      }
    }
  }
  if (y != nullptr) *y = result;
  return total;
}

bool check(const Sizes& sizes) {
  Problem<double> p(sizes);
  p.run_on_cpu();
  std::vector<double> y;
  objective(p, p.x, p.parameters, &y);
  const double error = distance(p.y, y);
  // The derivative along a random direction, by the gradients and by central differences.
  std::mt19937 random(2);
  std::normal_distribution<double> normal;
  const double step = 1e-5;
  double expected = 0;
  std::vector<double> x[2] = {p.x, p.x}, parameters[2] = {p.parameters, p.parameters};
  const auto move = [&](std::vector<double>(&both)[2], const std::vector<double>& gradient) {
    for (size_t i = 0; i < gradient.size(); ++i) {
      const double v = normal(random);
      both[0][i] += step * v;
      both[1][i] -= step * v;
      expected += gradient[i] * v;
    }
  };
  move(x, p.dx);
  move(parameters, p.gradients);
  const double slope = (objective(p, x[0], parameters[0], nullptr) - objective(p, x[1], parameters[1], nullptr)) / (2 * step);
  const double slope_error = std::abs(slope - expected) / std::max(1.0, std::abs(expected));
  const bool right = error < 1e-12 && slope_error < 1e-6;
  std::printf("%s %s y %.1e slope %.1e\n", right ? "ok  " : "FAIL", sizes.name().c_str(), error, slope_error);
  return right;
}

}  // namespace

int main() {
  bool right = true;
  for (const bool channels_last : {true, false}) {
    for (const bool shared : {false, true}) {
      for (const bool sum : {true, false}) {
        right &= check({.b = 2, .c = 5, .h = 6, .w = 7, .shared = shared, .channels_last = channels_last, .sum = sum});
      }
    }
    right &= check({.b = 1, .c = 16, .h = 9, .w = 4, .channels_last = channels_last, .keep_state = false, .chunk = 4});
    right &= check({.b = 1, .c = 3, .h = 4, .w = 5, .directions = 1, .channels_last = channels_last, .normalize = false});
  }
  std::printf("cpu kernels (%s): %s\n", cgspn::cpu::instruction_set(), right ? "right" : "WRONG");
  return right ? 0 : 1;
}
