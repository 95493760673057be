"""Models by name: make one, know one, keep one."""

from cifarnets.models.airbench import Airbench94
from cifarnets.models.convnet import ConvNet, ConvNetFunctional
from cifarnets.models.factory import create, load, save
from cifarnets.models.fcnet import FCNet
from cifarnets.models.meta import Meta, describe
from cifarnets.models.registry import ModelInfo, info, list_models, register
from cifarnets.models.summary import Layer, Summary, summary

__all__ = [
    "Airbench94",
    "ConvNet",
    "ConvNetFunctional",
    "FCNet",
    "Layer",
    "Meta",
    "ModelInfo",
    "Summary",
    "create",
    "describe",
    "info",
    "list_models",
    "load",
    "register",
    "save",
    "summary",
]
