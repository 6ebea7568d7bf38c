"""VTFusion's fusion block: alignment, interaction, gated fusion, and the losses that read them."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_vtfusion import VTFusionConfig

# A sharper softmax than this is one-hot in float32, and its gradient vanishes (the bound of CLIP's logit scale). One
# flatter than the inverse is even.
MAX_LOGIT_SCALE = 100.0


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision to float32; float64 stays what it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def bounded_scale(log_scale: torch.Tensor) -> torch.Tensor:
    """1 / temperature, from 1 / `MAX_LOGIT_SCALE` to `MAX_LOGIT_SCALE`, in at least float32."""
    # Bounded before the exponential: behind it the gradient of an overflow is 0 * inf.
    bound = math.log(MAX_LOGIT_SCALE)
    return at_least_float32(log_scale).clamp(-bound, bound).exp()


def unit_vectors(x: torch.Tensor) -> torch.Tensor:
    """
    Vectors of length 1 along the last dimension, in at least float32. A zero vector stays zero and gets no gradient:
    that of `F.normalize` is 1e12 times what comes in, which half precision cannot hold.
    """
    x = at_least_float32(x)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.masked_fill(norm < 1e-12, torch.inf)


# ------------------------------------------------------------------------------------------------------- alignment


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    softmax(query @ key^T) @ value. On unit vectors, with the query divided by the temperature, this is the softmax of
    cosine / temperature, so the similarity matrix is never stored.

    Args:
        query (`torch.Tensor` of shape `(B, heads, Q, d)`): already scaled.
        key (`torch.Tensor` of shape `(B, heads, K, d)`): the positions that are read.
        value (`torch.Tensor` of shape `(B, heads, K, d_value)`): what is read there.
        key_mask (`torch.BoolTensor` of shape `(B, K)` or `(B, Q, K)`, *optional*): which positions may be read. Who may
            read none reads all: the caller drops the result, and a softmax over nothing would poison the gradients.

    Returns:
        `torch.Tensor` of shape `(B, heads, Q, d_value)`.
    """
    mask = None if key_mask is None else _readable(key_mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)


def attention_map(query: torch.Tensor, key: torch.Tensor, key_mask: torch.Tensor | None = None) -> torch.Tensor:
    """The weights of [`attend`], `(B, heads, Q, K)`, for people who want to look at them."""
    scores = query @ key.transpose(-1, -2)
    if key_mask is not None:
        scores = scores.masked_fill(~_readable(key_mask), float("-inf"))
    return scores.softmax(dim=-1)


def _readable(key_mask: torch.Tensor) -> torch.Tensor:
    readable = key_mask | ~key_mask.any(dim=-1, keepdim=True)
    return readable[:, None, None, :] if key_mask.dim() == 2 else readable[:, None]


# ----------------------------------------------------------------------------------------------------- interaction


class VTFusionLinear(nn.Linear):
    """
    A linear layer of the fusion part, which starts from Xavier's uniform distribution. Unlike the 0.02 of wide
    encoders it keeps the signal at these small widths: without it the picture is not found at all in a short training.
    """


class VTFusionZeroLinear(nn.Linear):
    """A linear layer that starts at zero. A class of its own, since only a module that owns weights is initialised."""


class VTFusionFeedForward(nn.Module):
    """The feed-forward of a fusion layer with its residual connection; the norm comes first."""

    def __init__(self, config: VTFusionConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.fusion_hidden_size)
        self.up = VTFusionLinear(config.fusion_hidden_size, config.fusion_intermediate_size)
        self.activation = ACT2FN[config.fusion_hidden_act]
        self.down = VTFusionLinear(config.fusion_intermediate_size, config.fusion_hidden_size)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Hidden states `(…, D)` to hidden states `(…, D)`."""
        return hidden_state + self.dropout(self.down(self.activation(self.up(self.norm(hidden_state)))))


class VTFusionLayer(GradientCheckpointingLayer):
    """
    One fusion layer: text reads image and image reads text, both from the same similarity.

    Args:
        config ([`VTFusionConfig`]): the model's configuration.
        has_image_side (`bool`): whether the image reads the text. The last layer has none when nothing would use it.

    Example:

    ```python
    >>> import torch
    >>> from vtfusion import VTFusionConfig
    >>> from vtfusion.fusion_vtfusion import VTFusionLayer

    >>> layer = VTFusionLayer(VTFusionConfig(fusion_hidden_size=16, num_fusion_heads=2), has_image_side=True)
    >>> context, image, query, key = layer(torch.rand(1, 5, 16), torch.rand(1, 49, 16), None, None)
    >>> context.shape, image.shape, query.shape
    (torch.Size([1, 5, 16]), torch.Size([1, 49, 16]), torch.Size([1, 2, 5, 8]))
    ```
    """

    def __init__(self, config: VTFusionConfig, has_image_side: bool):
        super().__init__()
        width = config.fusion_hidden_size
        self.num_heads = config.num_fusion_heads
        self.has_image_side = has_image_side
        self.text_norm = nn.LayerNorm(width)
        self.image_norm = nn.LayerNorm(width)
        self.query = VTFusionLinear(width, width)
        self.key = VTFusionLinear(width, width)
        self.log_scale = nn.Parameter(torch.full((self.num_heads,), -math.log(config.temperature_init)))
        self.dropout = nn.Dropout(config.fusion_dropout)
        self.image_value = VTFusionLinear(width, width)
        self.context_output = VTFusionLinear(width, width)
        self.context_feed_forward = VTFusionFeedForward(config)
        if has_image_side:
            self.text_value = VTFusionLinear(width, width)
            self.image_output = VTFusionLinear(width, width)
            self.image_feed_forward = VTFusionFeedForward(config)

    def scale(self) -> torch.Tensor:
        """1 / tau of each head, `(heads, 1, 1)`."""
        return bounded_scale(self.log_scale)[:, None, None]

    def forward(
        self,
        text_state: torch.Tensor,
        image_state: torch.Tensor,
        text_mask: torch.Tensor | None,
        visual_mask: torch.Tensor | None,
        with_image_side: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            text_state (`torch.FloatTensor` of shape `(B, L, D)`): the tokens.
            image_state (`torch.FloatTensor` of shape `(B, N, D)`): the image positions.
            text_mask (`torch.BoolTensor` of shape `(B, L)`, *optional*): False at padding.
            visual_mask (`torch.BoolTensor` of shape `(B, N)`, *optional*): False at positions that are not there.
            with_image_side (`bool`, *optional*, defaults to `True`):
                Whether the image positions read the text, where the layer has that side; else they stay as they are.

        Returns:
            `tuple` of what the tokens read `(B, L, D)`, the image positions `(B, N, D)`, and the scaled query
            `(B, heads, L, D / heads)` and key `(B, heads, N, D / heads)` of the alignment.
        """
        text = self.text_norm(text_state)
        query = self.project_query(text)
        key, value = self.project_image(image_state)
        context = self.read_image(query, key, value, visual_mask)
        if self.has_image_side and with_image_side:
            read = attend(key, query, self._split(self.text_value(text)), text_mask)
            image_state = image_state + self.dropout(self.image_output(self._merge(read)))
            image_state = self.image_feed_forward(image_state)
        return context, image_state, query, key

    def project_query(self, normed_text: torch.Tensor) -> torch.Tensor:
        """Scaled queries `(B, heads, L, D / heads)` of the tokens `(B, L, D)` after `text_norm`."""
        # The norm in float32: in half precision the squares of a wide vector overflow.
        query = unit_vectors(self._split(self.query(normed_text)))
        return (query * self.scale()).to(normed_text.dtype)

    def project_image(self, image_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, both `(B, heads, N, D / heads)`, of the image positions `(B, N, D)`: they know no text."""
        image = self.image_norm(image_state)
        key = unit_vectors(self._split(self.key(image))).to(image.dtype)
        return key, self._split(self.image_value(image))

    def read_image(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visual_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """What the tokens read `(B, L, D)`; `visual_mask` is `(B, N)`, or `(B, L, N)` where tokens differ in it."""
        context = self._merge(attend(query, key, value, visual_mask))
        return self.context_feed_forward(self.dropout(self.context_output(context)))

    def _split(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return hidden_state.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _merge(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return hidden_state.transpose(1, 2).flatten(2)


class VTFusionPositions(nn.Module):
    """
    Where an image position lies, as a vector: sines and cosines of its box and of its image's index, projected. Grid
    cells, detector boxes and given regions are all boxes, so one encoding serves any grid size and any encoder.
    """

    num_frequencies = 8

    def __init__(self, config: VTFusionConfig):
        super().__init__()
        # centre, size and image index, each with a sine and a cosine per frequency
        self.projection = VTFusionLinear(5 * 2 * self.num_frequencies, config.fusion_hidden_size)

    def forward(self, boxes: torch.Tensor) -> torch.Tensor:
        """
        Args:
            boxes (`torch.FloatTensor` of shape `(B, M, n, 4)`): (x0, y0, x1, y1) from 0 to 1.

        Returns:
            `torch.FloatTensor` of shape `(B, M, n, D)`.
        """
        dtype = self.projection.weight.dtype
        # Half precision is too coarse for the high frequencies; a float64 model gets its waves in float64.
        boxes = boxes.to(torch.promote_types(dtype, torch.float32))
        index = torch.arange(boxes.shape[1], device=boxes.device, dtype=boxes.dtype)
        # The highest frequency turns by pi from one image to the next when the index is counted in 128ths.
        index = (index / 2**self.num_frequencies * 2)[None, :, None, None].expand(*boxes.shape[:3], 1)
        corner, opposite = boxes[..., :2], boxes[..., 2:]
        coordinates = torch.cat([(corner + opposite) / 2, opposite - corner, index], dim=-1)
        octaves = torch.arange(self.num_frequencies, device=boxes.device, dtype=boxes.dtype)
        angles = (coordinates[..., None] * (math.pi * 2**octaves)).flatten(-2)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.projection(waves.to(dtype))


# ---------------------------------------------------------------------------------------------------------- fusion


class VTFusionGatedFusion(nn.Module):
    """X_f = X_t + g * W_o [norm X_t ; norm X_c], with W_o starting at zero: before training X_f is X_t."""

    def __init__(self, config: VTFusionConfig, text_hidden_size: int):
        super().__init__()
        self.context_norm = nn.LayerNorm(config.fusion_hidden_size)
        self.gate = nn.Linear(text_hidden_size + config.fusion_hidden_size, 1)
        self.output = VTFusionZeroLinear(text_hidden_size + config.fusion_hidden_size, text_hidden_size)

    def forward(
        self,
        text_hidden_state: torch.Tensor,
        normed_text: torch.Tensor,
        context: torch.Tensor,
        has_image: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            text_hidden_state (`torch.FloatTensor` of shape `(B, L, text_hidden_size)`): X_t.
            normed_text (`torch.FloatTensor` of shape `(B, L, text_hidden_size)`): norm X_t.
            context (`torch.FloatTensor` of shape `(B, L, D)`): X_c.
            has_image (`torch.BoolTensor` of shape `(B,)` or `(B, L)`, *optional*):
                Rows with an image, or tokens that may see one; `None` where all do.

        Returns:
            `tuple` of X_f `(B, L, text_hidden_size)` and the gate `(B, L)`.
        """
        joined = torch.cat([normed_text, self.context_norm(context)], dim=-1)
        gate = self.gate(joined).sigmoid()
        addition = gate * self.output(joined)
        if has_image is not None:
            # `where`, not a product: nothing that a row without an image computed may reach its result.
            has_image = has_image.view(has_image.shape[0], -1, 1)
            gate = torch.where(has_image, gate, 0.0)
            addition = torch.where(has_image, addition, 0.0)
        return text_hidden_state + addition, gate.squeeze(-1)


# --------------------------------------------------------------------------------------------------------- pooling


def pool_tokens(hidden_state: torch.Tensor, mask: torch.Tensor | None, how: str) -> torch.Tensor:
    """One vector `(B, H)` of the tokens `(B, L, H)` of each text: their `"mean"`, the `"first"` or the `"last"`."""
    if how == "mean":
        return masked_mean(hidden_state, mask)
    if mask is None:
        return hidden_state[:, 0 if how == "first" else -1]
    # padding may stand on either side
    places = torch.arange(mask.shape[1], device=mask.device) * mask
    if how == "first":
        places = places.masked_fill(~mask, mask.shape[1])
    index = places.argmin(dim=-1) if how == "first" else places.argmax(dim=-1)
    return hidden_state[torch.arange(hidden_state.shape[0], device=hidden_state.device), index]


def pool(hidden_state: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean `(B, D)` over the positions that are there, as a unit vector; zero where none is."""
    return unit_vectors(masked_mean(hidden_state, mask)).to(hidden_state.dtype)


def masked_mean(hidden_state: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean `(B, D)` of `(B, L, D)` over the positions that are there; zero where none is."""
    if mask is None:
        return hidden_state.mean(dim=1)
    weights = mask.to(hidden_state.dtype)[..., None]
    # A sum in half precision overflows long before the mean does.
    dtype = torch.promote_types(hidden_state.dtype, torch.float32)
    total = (hidden_state * weights).sum(dim=1, dtype=dtype)
    return (total / weights.sum(dim=1, dtype=dtype).clamp(min=1)).to(hidden_state.dtype)


# ---------------------------------------------------------------------------------------------------------- losses


def token_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """
    Mean cross-entropy over the labels that are not -100; zero where there is none. `num_items_in_batch` (the number of
    labels in all micro-batches and processes, which `Trainer` passes) makes the sum over them the mean of the whole.
    """
    losses = row_losses(logits, labels, "single_label_classification", class_weights, label_smoothing)
    return losses.sum() / count_labels(labels, num_items_in_batch)


def row_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """
    The loss of each prediction, summed over its labels; labels of -100 add nothing.

    Args:
        logits (`torch.FloatTensor` of shape `(..., C)`): predictions.
        labels (`torch.Tensor` of shape `(...)` or `(..., C)`): classes; or 0 to 1 for each class; or numbers.
        problem_type (`str`):
            `"single_label_classification"`: cross-entropy; `"multi_label_classification"`: binary cross-entropy;
            `"regression"`: squared error.
        class_weights (`Sequence[float]` of length C, *optional*):
            Weight of each class in a cross-entropy (of its positive labels, where several may hold).
        label_smoothing (`float`, *optional*, defaults to 0.0):
            The part of the probability that is spread over all classes (over both answers, where several may hold).

    Returns:
        `torch.FloatTensor` of shape `(...)`.
    """
    logits = at_least_float32(logits)
    weights = None if class_weights is None else logits.new_tensor(class_weights)
    if problem_type == "single_label_classification":
        flat = F.cross_entropy(
            logits.flatten(0, -2),
            labels.flatten(),
            weight=weights,
            ignore_index=-100,
            reduction="none",
            label_smoothing=label_smoothing,
        )
        return flat.view(labels.shape)
    counted, targets = labels != -100, labels.to(logits.dtype)
    if problem_type == "regression":
        losses = (logits - targets).square()
    else:
        targets = targets * (1 - label_smoothing) + label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
    return torch.where(counted, losses, 0.0).sum(dim=-1)


def span_cross_entropy(logits: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Mean of the cross-entropies of an answer's first and last token, from logits `(B, L, 2)` and places `(B,)`."""
    first, last = logits.unbind(dim=-1)
    return (token_cross_entropy(first, start) + token_cross_entropy(last, end)) / 2


def answer_mask(start: torch.Tensor, end: torch.Tensor, length: int) -> torch.Tensor:
    """Which tokens `(B, L)` lie in the answer, from the places `(B,)` of its first and last token."""
    places = torch.arange(length, device=start.device)
    return (places >= start[:, None]) & (places <= end[:, None])


def binary_loss(logits: torch.Tensor, counted: torch.Tensor, positive: bool) -> torch.Tensor:
    """Sum of the binary cross-entropies of pairs `(B,)` that all belong together, or do not, where `counted`."""
    signed = at_least_float32(logits) if positive else -at_least_float32(logits)
    return torch.where(counted, -F.logsigmoid(signed), 0.0).sum()


def hard_negatives(
    similarity: torch.Tensor, has_image: torch.Tensor, draw: bool = True
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """
    Pairs that do not belong together: for each text an image of another row, for each image a text of another row,
    drawn by the softmax of their similarity. A row without a fitting other gets itself, and means nothing unless the
    batch has two rows with an image.

    Args:
        similarity (`torch.FloatTensor` of shape `(B, B)`): scaled cosine of text i and image j.
        has_image (`torch.BoolTensor` of shape `(B,)`): rows with an image.
        draw (`bool`, *optional*, defaults to `True`): whether to draw them; else the most similar is taken.

    Returns:
        Two `tuple` of rows of texts `(B,)` and rows of images `(B,)`.
    """
    rows = torch.arange(similarity.shape[0], device=similarity.device)
    same = rows[:, None] == rows[None, :]
    scores = at_least_float32(similarity.detach())

    def choose(scores: torch.Tensor) -> torch.Tensor:
        weights = scores.masked_fill(same | ~has_image[None, :], float("-inf")).softmax(dim=-1)
        # no other row with an image: itself
        weights = torch.where(weights.isnan(), same.to(weights.dtype), weights)
        return torch.multinomial(weights, 1).squeeze(-1) if draw else weights.argmax(dim=-1)

    return (rows, choose(scores)), (choose(scores.T), rows)


def vision_loss(
    log_probs: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    visual_mask: torch.Tensor | None,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    r"""
    L_v = -sum_{jk} alpha_{ijk} log p_v^{jk}(y_i), averaged over the heads and over all labels; those of a row without
    an image add nothing. One more attention call, with the log-probabilities as values, so that alpha is never built.

    Args:
        log_probs (`torch.FloatTensor` of shape `(B, N, num_labels)`): what each image position predicts.
        query (`torch.FloatTensor` of shape `(B, heads, L, d)`): unit vectors of the tokens over the temperature.
        key (`torch.FloatTensor` of shape `(B, heads, N, d)`): unit vectors of the image positions.
        visual_mask (`torch.BoolTensor` of shape `(B, N)` or `(B, L, N)`, *optional*):
            Which image positions are there, or which of them each token may read.
        labels (`torch.LongTensor` of shape `(B, L)`): -100 where there is none.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*): as in [`token_cross_entropy`].
    """
    num_labels = log_probs.shape[-1]
    # The fused kernels ask for values as wide as the keys.
    values = F.pad(log_probs, (0, max(query.shape[-1] - num_labels, 0))).to(query.dtype)
    values = values[:, None].expand(-1, query.shape[1], -1, -1)
    expected = attend(query, key, values, visual_mask).mean(dim=1)[..., :num_labels]
    counted = labels != -100
    if visual_mask is not None:
        counted = counted & visual_mask.any(dim=-1).view(visual_mask.shape[0], -1)
    chosen = at_least_float32(expected.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1))
    total = -torch.where(counted, chosen, 0.0).sum()
    # By all labels, as `num_items_in_batch` counts them: micro-batches then add up to the loss of the whole batch.
    return total / count_labels(labels, num_items_in_batch)


def row_vision_loss(
    losses: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    text_mask: torch.Tensor | None,
    visual_mask: torch.Tensor | None,
    count: torch.Tensor,
) -> torch.Tensor:
    r"""
    L_v where a label belongs to a whole text: the loss of each image position, weighted by alpha, averaged over heads
    and tokens: sum_{jk} alpha_{ijk} loss^{jk}. Rows without an image add nothing.

    Args:
        losses (`torch.FloatTensor` of shape `(R, N)`): of each image position, by [`row_losses`].
        query (`torch.FloatTensor` of shape `(R, heads, L, d)`): unit vectors of the tokens over the temperature.
        key (`torch.FloatTensor` of shape `(R, heads, N, d)`): unit vectors of the image positions.
        text_mask (`torch.BoolTensor` of shape `(R, L)`, *optional*): False at padding.
        visual_mask (`torch.BoolTensor` of shape `(R, N)`, *optional*): which image positions are there.
        count (`torch.Tensor`): the number of labels to average over.
    """
    # In float32 even under autocast: half precision cannot hold a squared error above 65,504.
    with torch.autocast(query.device.type, enabled=False):
        query, key, losses = (at_least_float32(x) for x in (query, key, losses))
        # The fused kernels ask for values as wide as the keys.
        values = F.pad(losses[..., None], (0, query.shape[-1] - 1))
        expected = attend(query, key, values[:, None].expand(-1, query.shape[1], -1, -1), visual_mask)
    by_row = masked_mean(expected[..., 0].mean(dim=1)[..., None], text_mask).squeeze(-1)
    if visual_mask is not None:
        by_row = torch.where(visual_mask.any(dim=-1), by_row, 0.0)
    return by_row.sum() / count


def contrastive_loss(
    text_embeds: torch.Tensor, image_embeds: torch.Tensor, scale: torch.Tensor, has_image: torch.Tensor | None
) -> torch.Tensor:
    """
    Symmetric InfoNCE of a batch (the loss of CLIP) over the rows with an image; zero where there is none.

    Args:
        text_embeds (`torch.FloatTensor` of shape `(B, D)`): unit vectors.
        image_embeds (`torch.FloatTensor` of shape `(B, D)`): unit vectors.
        scale (`torch.FloatTensor` of shape `()`): 1 / temperature.
        has_image (`torch.BoolTensor` of shape `(B,)`, *optional*): rows with an image; `None` where all have one.
    """
    logits = at_least_float32(text_embeds @ image_embeds.T) * at_least_float32(scale)
    target = torch.arange(logits.shape[0], device=logits.device)
    if has_image is not None:
        absent = ~has_image
        # rows without an image are neither candidates nor queries
        logits = logits.masked_fill(absent[:, None] | absent[None, :], torch.finfo(logits.dtype).min)
        target = target.masked_fill(absent, -100)
    return (token_cross_entropy(logits, target) + token_cross_entropy(logits.T, target)) / 2


def count_labels(labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
    """Number of labels to average over: `num_items_in_batch` where it is given, else those of the batch, at least 1."""
    if num_items_in_batch is None:
        return (labels != -100).sum().clamp(min=1)
    return torch.as_tensor(num_items_in_batch, device=labels.device).clamp(min=1)


# ---------------------------------------------------------------------------------------------------------- labels
# What is no label raises a `ValueError` that names its row, where it may be looked at; else the loss kernels stop it.


def may_look_at(values: torch.Tensor) -> bool:
    """
    Whether code may depend on these values: an accelerator would have to be waited for to know them, and a compiler
    needs fixed shapes.
    """
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_label_range(labels: torch.Tensor, num_labels: int, name: str = "labels") -> None:
    """Labels from 0 to `num_labels - 1`, or -100."""
    if may_look_at(labels):
        _raise_outside(labels, ((labels < 0) & (labels != -100)) | (labels >= num_labels), num_labels - 1, name)


def check_not_padding(positions: torch.Tensor, attention_mask: torch.Tensor, name: str) -> None:
    """Places `(B,)` of tokens that are there, or -100; a text without any token has no such place, and may give any."""
    if may_look_at(positions):
        there = attention_mask.bool()
        found = there.gather(1, positions.clamp(min=0)[:, None]).squeeze(1)
        padding = (positions >= 0) & ~found & there.any(dim=1)
        if padding.any():
            row = int(padding.nonzero()[0])
            raise ValueError(f"Row {row}, field `{name}`: {int(positions[row])} is padding.")


def check_score_range(labels: torch.Tensor) -> None:
    """Labels from 0 to 1 for each class, or -100: beyond them a binary cross-entropy falls without end."""
    if may_look_at(labels):
        # put so that NaN is outside too
        _raise_outside(labels, ~((labels >= 0) & (labels <= 1)) & (labels != -100), 1, "labels")


def check_token_labels(labels: torch.Tensor, shape: tuple[int, int], num_labels: int) -> None:
    """A label for each token, of `shape` `(B, L)`."""
    if tuple(labels.shape) != shape:
        raise ValueError(f"`labels` must have shape {shape}, got {tuple(labels.shape)}.")
    check_label_range(labels, num_labels)


def _raise_outside(labels: torch.Tensor, outside: torch.Tensor, highest: int, name: str) -> None:
    if outside.any():
        row, *position = outside.nonzero()[0].tolist()
        at = f" at position {position[0]}" if position else ""
        raise ValueError(
            f"Row {row}, field `{name}`: {labels[row, *position].item()}{at} is outside its range (0 to {highest}, "
            "or -100 for none)."
        )


__all__ = [
    "MAX_LOGIT_SCALE",
    "VTFusionFeedForward",
    "VTFusionGatedFusion",
    "VTFusionLayer",
    "VTFusionLinear",
    "VTFusionPositions",
    "VTFusionZeroLinear",
    "answer_mask",
    "at_least_float32",
    "attend",
    "attention_map",
    "binary_loss",
    "bounded_scale",
    "check_label_range",
    "check_not_padding",
    "check_score_range",
    "check_token_labels",
    "contrastive_loss",
    "count_labels",
    "hard_negatives",
    "masked_mean",
    "may_look_at",
    "pool",
    "pool_tokens",
    "row_losses",
    "row_vision_loss",
    "span_cross_entropy",
    "token_cross_entropy",
    "unit_vectors",
    "vision_loss",
]
