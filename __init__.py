"""VTFusion: fuse pictures into language models, the Hugging Face way."""

# The repository root is this package. Tools that import the root file under the checkout's folder name
# (pytest, for one) must not run it: only the installed package does.
if __name__ == "vtfusion":
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForPreTraining,
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoModelForVisualQuestionAnswering,
        AutoModelForZeroShotImageClassification,
        AutoProcessor,
    )

    from .configuration_vtfusion import VTFusionConfig
    from .modeling_vtfusion import (
        VTFusionForImageTextRetrieval,
        VTFusionForMaskedLM,
        VTFusionForPreTraining,
        VTFusionForQuestionAnswering,
        VTFusionForSequenceClassification,
        VTFusionForTokenClassification,
        VTFusionForVisualQuestionAnswering,
        VTFusionModel,
        VTFusionPreTrainedModel,
    )
    from .processing_vtfusion import VTFusionProcessor

    AutoConfig.register("vtfusion", VTFusionConfig)
    AutoModel.register(VTFusionConfig, VTFusionModel)
    AutoModelForMaskedLM.register(VTFusionConfig, VTFusionForMaskedLM)
    AutoModelForPreTraining.register(VTFusionConfig, VTFusionForPreTraining)
    AutoModelForQuestionAnswering.register(VTFusionConfig, VTFusionForQuestionAnswering)
    AutoModelForSequenceClassification.register(VTFusionConfig, VTFusionForSequenceClassification)
    AutoModelForTokenClassification.register(VTFusionConfig, VTFusionForTokenClassification)
    AutoModelForVisualQuestionAnswering.register(VTFusionConfig, VTFusionForVisualQuestionAnswering)
    AutoModelForZeroShotImageClassification.register(VTFusionConfig, VTFusionForImageTextRetrieval)
    AutoProcessor.register(VTFusionConfig, VTFusionProcessor)

    __version__ = "0.1.0"

    __all__ = [
        "VTFusionConfig",
        "VTFusionForImageTextRetrieval",
        "VTFusionForMaskedLM",
        "VTFusionForPreTraining",
        "VTFusionForQuestionAnswering",
        "VTFusionForSequenceClassification",
        "VTFusionForTokenClassification",
        "VTFusionForVisualQuestionAnswering",
        "VTFusionModel",
        "VTFusionPreTrainedModel",
        "VTFusionProcessor",
    ]
