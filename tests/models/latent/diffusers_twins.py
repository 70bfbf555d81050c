"""diffusers' PyTorch classes from our configs, and their weights as our trees."""

import pytest

from jaxanom import trees


def torch_model(class_name, config, *left_out):
    """Returns the class with seeded weights; biases and scales are not 0 and 1.

    Args:
      class_name: in diffusers.
      config: of ours; its fields are those of diffusers' config.
      *left_out: fields that the class does not take.
    """
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    fields = config.to_dict()
    for name in ("_class_name", *left_out):
        fields.pop(name)
    torch.manual_seed(0)
    model = getattr(diffusers, class_name)(**fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def to_our_tree(model, params):
    """Returns its weights through diffusers' own converter, led by our tree."""
    converter = pytest.importorskip("diffusers.models.modeling_flax_pytorch_utils")

    class Template:
        def init_weights(self, key):
            return params

    ours = converter.convert_pytorch_state_dict_to_flax(model.state_dict(), Template())
    assert trees.flatten(ours).keys() == trees.flatten(params).keys()
    return ours
