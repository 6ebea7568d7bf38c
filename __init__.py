"""VTFusion: fuse pictures into language models, the Hugging Face way."""

# The repository root is this package. Tools that import the root file under the checkout's folder name
# (pytest, for one) must not run it: only the installed package does.
if __name__ == "vtfusion":
    from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoProcessor

    from .configuration_vtfusion import VTFusionConfig
    from .modeling_vtfusion import VTFusionForTokenClassification, VTFusionModel, VTFusionPreTrainedModel
    from .processing_vtfusion import VTFusionProcessor

    AutoConfig.register("vtfusion", VTFusionConfig)
    AutoModel.register(VTFusionConfig, VTFusionModel)
    AutoModelForTokenClassification.register(VTFusionConfig, VTFusionForTokenClassification)
    AutoProcessor.register(VTFusionConfig, VTFusionProcessor)

    __version__ = "0.1.0"

    __all__ = [
        "VTFusionConfig",
        "VTFusionForTokenClassification",
        "VTFusionModel",
        "VTFusionPreTrainedModel",
        "VTFusionProcessor",
    ]
