"""The oldest system that runs a package, `export.target`, in the words of each part of Core ML. A leaf."""

DEPLOYMENT_TARGET = "iOS18"  # coremltools' name
OPSET = "CoreML8"
SPECIFICATION_VERSION = 9
