"""VTFusion: fuse pictures into language models, the Hugging Face way."""

# The repository root is this package. Tools that import the root file under the checkout's folder name
# (pytest, for one) must not run it: only the installed package does.
if __name__ == "vtfusion":
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMaskedLM,
        AutoModelForPreTraining,
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoModelForVisualQuestionAnswering,
        AutoModelForZeroShotImageClassification,
        AutoProcessor,
    )
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_vtfusion import VTFusionConfig
    from .modeling_vtfusion import (
        VTFusionForConditionalGeneration,
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
    from .pipeline_vtfusion import (
        VTFusionPipeline,
        VTFusionQuestionAnsweringPipeline,
        VTFusionTextClassificationPipeline,
        VTFusionTokenClassificationPipeline,
        VTFusionVisualQuestionAnsweringPipeline,
    )
    from .processing_vtfusion import VTFusionProcessor

    AutoConfig.register("vtfusion", VTFusionConfig)
    AutoModel.register(VTFusionConfig, VTFusionModel)
    AutoModelForCausalLM.register(VTFusionConfig, VTFusionForConditionalGeneration)
    AutoModelForImageTextToText.register(VTFusionConfig, VTFusionForConditionalGeneration)
    AutoModelForMaskedLM.register(VTFusionConfig, VTFusionForMaskedLM)
    AutoModelForPreTraining.register(VTFusionConfig, VTFusionForPreTraining)
    AutoModelForQuestionAnswering.register(VTFusionConfig, VTFusionForQuestionAnswering)
    AutoModelForSequenceClassification.register(VTFusionConfig, VTFusionForSequenceClassification)
    AutoModelForTokenClassification.register(VTFusionConfig, VTFusionForTokenClassification)
    AutoModelForVisualQuestionAnswering.register(VTFusionConfig, VTFusionForVisualQuestionAnswering)
    AutoModelForZeroShotImageClassification.register(VTFusionConfig, VTFusionForImageTextRetrieval)
    AutoProcessor.register(VTFusionConfig, VTFusionProcessor)
    for _pipeline, _auto_class in (
        (VTFusionQuestionAnsweringPipeline, AutoModelForQuestionAnswering),
        (VTFusionTextClassificationPipeline, AutoModelForSequenceClassification),
        (VTFusionTokenClassificationPipeline, AutoModelForTokenClassification),
        (VTFusionVisualQuestionAnsweringPipeline, AutoModelForVisualQuestionAnswering),
    ):
        PIPELINE_REGISTRY.register_pipeline(_pipeline.pipeline_task, pipeline_class=_pipeline, pt_model=_auto_class)

    __version__ = "0.1.0"

    __all__ = [
        "VTFusionConfig",
        "VTFusionForConditionalGeneration",
        "VTFusionForImageTextRetrieval",
        "VTFusionForMaskedLM",
        "VTFusionForPreTraining",
        "VTFusionForQuestionAnswering",
        "VTFusionForSequenceClassification",
        "VTFusionForTokenClassification",
        "VTFusionForVisualQuestionAnswering",
        "VTFusionModel",
        "VTFusionPipeline",
        "VTFusionPreTrainedModel",
        "VTFusionProcessor",
        "VTFusionQuestionAnsweringPipeline",
        "VTFusionTextClassificationPipeline",
        "VTFusionTokenClassificationPipeline",
        "VTFusionVisualQuestionAnsweringPipeline",
    ]
