"""The convolutional networks of Grossetête et al. 2024, appendix A: seven wobble images to an aperture shift.

One table says what each variant changes about the initial model (figure A.12). The paper's listing fixes the initial
model layer by layer; of the variants it draws the layers without listing them, so that what `VARIANTS` says of the
sizes of added layers is ours, and each changes one thing only, as the text has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "leaky_relu", "tanh", "sigmoid"]

FRAMES = 7
PAPER_PX = 256

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.3),  # Keras's default slope, the paper used TensorFlow
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution (same padding) with its activation, and whether a 2 x 2 maximum follows."""

    filters: int
    kernel: int
    pool: bool


@dataclass(frozen=True, slots=True)
class Variant:
    """What a network is made of, and what trains it.

    Attributes
    ----------
    figure
        Where the paper shows it.
    convolutions
        In order; none for the fully connected network.
    dense
        Units of the dense layers before the output.
    activation
        Of the convolutions and of the dense layers.
    output
        Of the last layer; "linear" for none. The initial model's ReLU works because positions are labelled 0 to 1.
    dropout
        Share dropped after each pooled convolution.
    batch_norm
        True to normalise after each convolution.
    optimiser, learning_rate
        Of the training.
    """

    figure: str
    convolutions: tuple[Convolution, ...] = (
        Convolution(32, 5, True),
        Convolution(64, 5, True),
        Convolution(32, 3, False),
    )
    dense: tuple[int, ...] = (64, 32)
    activation: Activation = "relu"
    output: Activation | Literal["linear"] = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    optimiser: str = "adam"
    learning_rate: float = 1e-3


_INITIAL = Variant("A.12")
_DEEP = (*_INITIAL.convolutions[:2], Convolution(64, 3, True), _INITIAL.convolutions[2])

VARIANTS: dict[str, Variant] = {
    "cnn": _INITIAL,
    "fully_connected": replace(_INITIAL, figure="A.13", convolutions=()),
    "dropout": replace(_INITIAL, figure="A.14", dropout=0.2),
    "batch_norm": replace(_INITIAL, figure="A.15", batch_norm=True),
    "more_convolutions": replace(_INITIAL, figure="A.16", convolutions=_DEEP),
    "fewer_convolutions": replace(_INITIAL, figure="A.17", convolutions=_INITIAL.convolutions[:2]),
    "more_dense": replace(_INITIAL, figure="A.18", dense=(128, 64, 32)),
    "fewer_dense": replace(_INITIAL, figure="A.19", dense=(64,)),
    "tanh": replace(_INITIAL, figure="A.20", activation="tanh", output="tanh"),
    "sigmoid": replace(_INITIAL, figure="A.21", activation="sigmoid", output="sigmoid"),
    "leaky_relu": replace(_INITIAL, figure="A.22", activation="leaky_relu", output="leaky_relu"),
    "adam_0.01": replace(_INITIAL, figure="A.23", learning_rate=0.01),
    "adam_0.0001": replace(_INITIAL, figure="A.23", learning_rate=0.0001),
    "adadelta": replace(_INITIAL, figure="A.23", optimiser="adadelta"),
    "adamax": replace(_INITIAL, figure="A.23", optimiser="adamax"),
    "adagrad": replace(_INITIAL, figure="A.23", optimiser="adagrad"),
    "sgd": replace(_INITIAL, figure="A.23", optimiser="sgd", learning_rate=0.01),
    "nadam": replace(_INITIAL, figure="A.23", optimiser="nadam"),
    "rmsprop": replace(_INITIAL, figure="A.23", optimiser="rmsprop"),
    "ftrl": replace(_INITIAL, figure="A.23", optimiser="ftrl"),
    "final": replace(
        _INITIAL, figure="A.24", convolutions=_DEEP, dense=(128, 64, 32), activation="leaky_relu", output="leaky_relu"
    ),
}
"""Every network of appendix A. The list of optimisers there has Adam(0.001) twice; the second is taken as 0.0001.
Learning rates that the paper does not give are Keras's defaults."""


class ApertureCNN(nn.Module):
    """One of the networks: (batch, frames, px, px) in [0, 1] to (batch, 2) positions, about 0 to 1.

    Parameters
    ----------
    variant
        A key of `VARIANTS`, or a variant of one's own.
    px
        Edge of the images; 256 in the paper.
    frames
        Images of a wobble.

    Raises
    ------
    ValueError
        For an unknown variant, or images too small for its pooling.
    """

    def __init__(self, variant: str | Variant = "cnn", px: int = PAPER_PX, frames: int = FRAMES) -> None:
        super().__init__()
        if isinstance(variant, str):
            if variant not in VARIANTS:
                raise ValueError(f"there is no variant {variant!r}; there are: {', '.join(VARIANTS)}")
            variant = VARIANTS[variant]
        self.variant, self.px, self.frames = variant, px, frames
        make = _ACTIVATIONS[variant.activation]
        layers: list[nn.Module] = []
        channels, edge = frames, px
        for each in variant.convolutions:
            layers.append(nn.Conv2d(channels, each.filters, each.kernel, padding=each.kernel // 2))
            if variant.batch_norm:
                layers.append(nn.BatchNorm2d(each.filters))
            layers.append(make())
            if each.pool:
                layers.append(nn.MaxPool2d(2))
                edge //= 2
                if variant.dropout:
                    layers.append(nn.Dropout(variant.dropout))
            channels = each.filters
        if edge < 1:
            raise ValueError(f"images of {px} px are too small for {len(variant.convolutions)} convolutions")
        layers.append(nn.Flatten())
        units = channels * edge * edge
        for width in variant.dense:
            layers += [nn.Linear(units, width), make()]
            units = width
        layers.append(nn.Linear(units, 2))
        if variant.output != "linear":
            layers.append(_ACTIVATIONS[variant.output]())
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):  # as Keras begins
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return positions, shape (batch, 2), for images of shape (batch, frames, px, px)."""
        out: Tensor = self.layers(x)
        return out


class Ftrl(torch.optim.Optimizer):
    """Follow the regularised leader (McMahan et al. 2013, algorithm 1), without regularisation, as Keras's default."""

    def __init__(self, params: Any, lr: float = 1e-3, initial_accumulator: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "initial": initial_accumulator})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["n"] = torch.full_like(parameter, group["initial"])
                    state["z"] = torch.zeros_like(parameter)
                gradient = parameter.grad
                grown = state["n"] + gradient**2
                state["z"] += gradient - (grown.sqrt() - state["n"].sqrt()) / group["lr"] * parameter
                state["n"] = grown
                parameter.copy_(-state["z"] * group["lr"] / grown.sqrt())
        return loss


def make_optimiser(variant: Variant, net: nn.Module) -> torch.optim.Optimizer:
    """Return the variant's optimiser, with Keras's defaults where the paper says nothing."""
    parameters, rate = net.parameters(), variant.learning_rate
    match variant.optimiser:
        case "adam":
            return torch.optim.Adam(parameters, rate, eps=1e-7)
        case "adadelta":
            return torch.optim.Adadelta(parameters, rate, rho=0.95, eps=1e-7)
        case "adamax":
            return torch.optim.Adamax(parameters, rate, eps=1e-7)
        case "adagrad":
            return torch.optim.Adagrad(parameters, rate, initial_accumulator_value=0.1, eps=1e-7)
        case "sgd":
            return torch.optim.SGD(parameters, rate)
        case "nadam":
            return torch.optim.NAdam(parameters, rate, eps=1e-7)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, rate, alpha=0.9, eps=1e-7)
        case "ftrl":
            return Ftrl(parameters, rate)
        case other:
            raise ValueError(f"there is no optimiser {other!r}")


def parameters(net: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
