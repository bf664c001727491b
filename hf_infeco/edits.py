"""What was changed in a model, and the way back: the only file that changes one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from . import compat


@dataclass
class _Attribute:
    """An attribute of a module: a value, a forward of its own, or a parameter."""

    module: nn.Module
    name: str
    value: Any
    existed: bool
    before: Any

    def undo(self) -> None:
        held = _place(self.module, self.value)
        if held.get(self.name) is not self.value:
            return
        if self.existed:
            held[self.name] = self.before
        else:
            del held[self.name]


@dataclass
class _ForwardPreHook:
    module: nn.Module
    hook: Callable

    def undo(self) -> None:
        # By identity: the handle of a registration does not survive a deepcopy of the module.
        hooks = self.module._forward_pre_hooks
        for key in [key for key, registered in hooks.items() if registered is self.hook]:
            del hooks[key]
            self.module._forward_pre_hooks_with_kwargs.pop(key, None)


@dataclass
class _Attention:
    decoder: PreTrainedModel
    name: str
    before: str

    def undo(self) -> None:
        if compat.attention_name(self.decoder) == self.name:
            self.decoder.set_attn_implementation(self.before)


@dataclass
class Edits:
    """
    Changes to a model, in order. `undo` takes them back, the last one first; what somebody else has put in the place
    of a change since is theirs to keep.

    Kept in an attribute of the model, it goes through a deepcopy or a pickle of the model with it.
    """

    done: list[_Attribute | _ForwardPreHook | _Attention] = field(default_factory=list)

    def set_attribute(self, module: nn.Module, name: str, value: Any) -> None:
        """
        Of this instance only; an `nn.Parameter` takes the place of the module's parameter. A value that is to change
        has to be an object that changes: another one in its place would not be taken for ours.
        """
        held = _place(module, value)
        self.done.append(_Attribute(module, name, value, name in held, held.get(name)))
        held[name] = value

    def add_forward_pre_hook(self, module: nn.Module, hook: Callable) -> None:
        """`hook(module, args, kwargs)`, a function of a module, so that a pickle carries it along."""
        self.done.append(_ForwardPreHook(module, hook))
        module.register_forward_pre_hook(hook, with_kwargs=True)

    def set_attention(self, decoder: PreTrainedModel, name: str) -> None:
        """
        Points the decoder's modules to another function of transformers' attention interface.

        Raises:
            RuntimeError: if the model takes no notice.
        """
        self.done.append(_Attention(decoder, name, compat.attention_name(decoder)))
        decoder.set_attn_implementation(name)
        if compat.attention_name(decoder) != name:
            raise RuntimeError(
                f"{type(decoder).__name__} ignored set_attn_implementation({name!r}) and is unchanged. "
                f"Please report the model; its cache can be quantized by passing {compat.CACHE_NAME}=InnerQCache(...)."
            )

    @property
    def attention(self) -> str | None:
        """The attention implementation that was set; None if none was."""
        return next((edit.name for edit in reversed(self.done) if isinstance(edit, _Attention)), None)

    def undo(self) -> None:
        """Takes all changes back; harmless where nothing is left to take back."""
        while self.done:
            self.done.pop().undo()


@dataclass
class _Swap:
    """What takes the place of one module's parameters and forward, and what stood there when it was built."""

    module: nn.Module
    parameters: dict[str, nn.Parameter]
    forward: Callable | None
    before: dict[str, nn.Parameter]
    addresses: dict[str, int]
    own_forward: Any  # an instance attribute that was there already, or None

    def is_current(self) -> bool:
        held = self.module._parameters
        for name, value in self.before.items():  # a plain loop: this is most of the time of a switch of views
            if held[name] is not value or value.data_ptr() != self.addresses[name]:
                return False
        return self.module.__dict__.get("forward") is self.own_forward

    def put_on(self) -> None:
        self.module._parameters.update(self.parameters)
        if self.forward is not None:
            vars(self.module)["forward"] = self.forward

    def take_off(self) -> None:
        held = self.module._parameters
        for name, value in self.parameters.items():
            if held.get(name) is value:
                held[name] = self.before[name]
        if self.forward is not None and vars(self.module).get("forward") is self.forward:
            if self.own_forward is None:
                del vars(self.module)["forward"]
            else:
                vars(self.module)["forward"] = self.own_forward


@dataclass
class Overlay:
    """
    Parameters and forwards that take the place of a model's own and leave again, as often as wanted. What was there
    is kept by identity, so that taking off gives back the same tensors; twice is harmless.
    """

    swaps: list[_Swap] = field(default_factory=list)
    is_on: bool = False

    def add(
        self,
        module: nn.Module,
        parameters: dict[str, nn.Parameter],
        install: Callable[[nn.Module], Any] | None = None,
    ) -> None:
        """`install(module)` gives a module a forward of its own, which is kept for later and taken off again."""
        own = vars(module).get("forward")
        forward = None
        if install is not None:
            install(module)
            forward = vars(module).pop("forward")
            if own is not None:
                vars(module)["forward"] = own
        before = {name: module.get_parameter(name) for name in parameters}
        addresses = {name: value.data_ptr() for name, value in before.items()}
        self.swaps.append(_Swap(module, parameters, forward, before, addresses, own))

    def put_on(self) -> None:
        """
        Raises:
            RuntimeError: if a parameter or a forward is another one than when this was built. Nothing is changed then.
        """
        if self.is_on:
            return
        if stale := next((swap.module for swap in self.swaps if not swap.is_current()), None):
            raise RuntimeError(
                f"A parameter or the forward of a {type(stale).__name__} was replaced after its views were built, "
                "such as by model.to(...), patch() or an adapter. Build the ParallelSwitcher after such changes."
            )
        for swap in self.swaps:
            swap.put_on()
        self.is_on = True

    def take_off(self) -> None:
        for swap in self.swaps:
            swap.take_off()
        self.is_on = False


def _place(module: nn.Module, value: Any) -> dict[str, Any]:
    return module._parameters if isinstance(value, nn.Parameter) else vars(module)
