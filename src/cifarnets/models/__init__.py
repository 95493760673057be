"""Models by name: make one, know one, keep one."""

from cifarnets.models.airbench import Airbench, Airbench94, Airbench95, Airbench96
from cifarnets.models.convnet import ConvNet, ConvNetFunctional
from cifarnets.models.factory import create, load, save
from cifarnets.models.fcnet import FCNet
from cifarnets.models.meta import Meta, describe
from cifarnets.models.registry import ModelInfo, info, list_models, register
from cifarnets.models.resnet import ResNet, ResNet20, ResNet32, ResNet44, ResNet56, ResNet110
from cifarnets.models.summary import Layer, Summary, summary
from cifarnets.models.vgg import VGG, VGG11BN, VGG16BN
from cifarnets.models.wide_resnet import WideResNet, WideResNet16x4, WideResNet28x10
from cifarnets.weights.index import Release

__all__ = [
    "VGG",
    "VGG11BN",
    "VGG16BN",
    "Airbench",
    "Airbench94",
    "Airbench95",
    "Airbench96",
    "ConvNet",
    "ConvNetFunctional",
    "FCNet",
    "Layer",
    "Meta",
    "ModelInfo",
    "Release",
    "ResNet",
    "ResNet20",
    "ResNet32",
    "ResNet44",
    "ResNet56",
    "ResNet110",
    "Summary",
    "WideResNet",
    "WideResNet16x4",
    "WideResNet28x10",
    "create",
    "describe",
    "info",
    "list_models",
    "load",
    "register",
    "save",
    "summary",
]
