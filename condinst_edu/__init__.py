"""Fully convolutional instance and panoptic segmentation: one idea a module, one module a lesson."""

__version__ = "0.1.0"
