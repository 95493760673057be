"""Models by name: create one, list and describe them, save and load one."""

from cifarnets.models.airbench import Airbench, Airbench94, Airbench95, Airbench96
from cifarnets.models.catalog import ModelInfo, info, list_models
from cifarnets.models.classifier import Classifier, head
from cifarnets.models.convnet import ConvNet, ConvNetFunctional
from cifarnets.models.densenet import DenseNet, DenseNet40BC
from cifarnets.models.ensemble import Ensemble
from cifarnets.models.factory import create
from cifarnets.models.fcnet import FCNet
from cifarnets.models.metadata import ModelMeta, annotate
from cifarnets.models.mobilenet import MobileNetV2
from cifarnets.models.preprocessing import NormalizedModel, transform_for, with_normalization
from cifarnets.models.profile import Layer, Summary, summary
from cifarnets.models.quarternet import QuarterNet, QuarterNet16, QuarterNet32, QuarterNet48, QuarterNet64
from cifarnets.models.registry import register
from cifarnets.models.resnet import ResNet, ResNet8, ResNet18, ResNet20, ResNet32, ResNet44, ResNet56, ResNet110
from cifarnets.models.storage import load, save
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
    "Classifier",
    "ConvNet",
    "ConvNetFunctional",
    "DenseNet",
    "DenseNet40BC",
    "Ensemble",
    "FCNet",
    "Layer",
    "MobileNetV2",
    "ModelInfo",
    "ModelMeta",
    "NormalizedModel",
    "QuarterNet",
    "QuarterNet16",
    "QuarterNet32",
    "QuarterNet48",
    "QuarterNet64",
    "Release",
    "ResNet",
    "ResNet8",
    "ResNet18",
    "ResNet20",
    "ResNet32",
    "ResNet44",
    "ResNet56",
    "ResNet110",
    "Summary",
    "WideResNet",
    "WideResNet16x4",
    "WideResNet28x10",
    "annotate",
    "create",
    "head",
    "info",
    "list_models",
    "load",
    "register",
    "save",
    "summary",
    "transform_for",
    "with_normalization",
]
