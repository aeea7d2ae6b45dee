"""Conditioner networks, as Keras layers."""

from tfp_realnvp.networks.condition_embedding import ConditionEmbedding
from tfp_realnvp.networks.conditioner import Conditioner
from tfp_realnvp.networks.conv_resnet import ConvResNet
from tfp_realnvp.networks.dense_resnet import DenseResNet
from tfp_realnvp.networks.shallow_conv import ShallowConv
from tfp_realnvp.networks.vision_transformer import VisionTransformer
