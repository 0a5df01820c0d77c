"""The toy family's network and graphs."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from samexport.models.architectures.layers import no_values


class Blob(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.mix = nn.Conv2d(2 * width, width, 1)
        self.kinds = nn.Linear(5, width)
        self.places = nn.Linear(2, width)
        self.masks = nn.Conv2d(width, 2, 3, padding=1)
        self.sure = nn.Linear(width, 2)
        self.keep = nn.Conv2d(width + 2, width, 1)


def constants(blob):
    return {"no_memory": blob.places.weight.detach().numpy().mean() * np.ones((1, 8, 12, 12), np.float32)}


def empty(spec):
    with no_values():
        return Blob(spec.size)


class Look(nn.Module):
    def __init__(self, blob, frame):
        super().__init__()
        self.patch = blob.patch
        self.mean, self.std = (nn.Parameter(torch.tensor(v).view(1, 3, 1, 1)) for v in (frame.mean, frame.std))

    def forward(self, image):
        return F.gelu(self.patch((image - self.mean) / self.std))


class Recall(nn.Module):
    def __init__(self, blob):
        super().__init__()
        self.mix = blob.mix

    def forward(self, seen, memory):
        return torch.tanh(self.mix(torch.cat([seen, memory], 1)))


class PointOut(nn.Module):
    def __init__(self, blob):
        super().__init__()
        self.kinds, self.places, self.masks, self.sure = blob.kinds, blob.places, blob.masks, blob.sure

    def forward(self, recalled, spots, kinds):
        one_hot = (kinds[:, None] == torch.arange(-1, 4)).to(torch.float32)
        prompt = (self.kinds(one_hot) + self.places(spots / 48)).sum(0)
        found = F.relu(recalled + prompt.view(1, -1, 1, 1))
        used = (kinds >= 0).to(torch.int64).sum().view(1)
        return self.masks(found), self.sure(found.mean((2, 3))), used


class Remember(nn.Module):
    def __init__(self, blob):
        super().__init__()
        self.keep = blob.keep

    def forward(self, seen, shapes):
        return torch.tanh(self.keep(torch.cat([seen, shapes], 1)))


FORMS = {
    "look": lambda blob, spec, small: Look(blob, spec.frame),
    "recall": lambda blob, *_: Recall(blob),
    "point_out": lambda blob, *_: PointOut(blob),
    "remember": lambda blob, *_: Remember(blob),
}
