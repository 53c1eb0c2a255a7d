"""LightningModules: how a teacher is made, the two stages of distillation and the curriculum."""

from cgspn.modules.checkpointing import ActivationCheckpointing
from cgspn.modules.highres import HighResolution
from cgspn.modules.init_from import InitFrom
from cgspn.modules.pretraining import ContrastivePretraining
from cgspn.modules.stage1 import Stage1Distillation
from cgspn.modules.stage2 import Stage2Contrastive, TapConfig

__all__ = [
    "ActivationCheckpointing",
    "ContrastivePretraining",
    "HighResolution",
    "InitFrom",
    "Stage1Distillation",
    "Stage2Contrastive",
    "TapConfig",
]
