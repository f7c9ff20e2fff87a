"""The class nouns that dbray knows: of the base where its makers list them, else the bundled ones.

Sources of the bundled list: the classes of github.com/google/dreambooth, those of COCO (Lin et al.
2014, arXiv 1405.0312), and coarse nouns above those of ImageNet. Of words for the same thing only
one is here, since they would divide its probability among them.
"""

from __future__ import annotations

from dbray.bases import Base

_DREAMBOOTH = (
    "backpack", "stuffed animal", "bowl", "can", "candle", "cat", "clock", "sneaker", "dog", "toy",
    "boot", "glasses", "cartoon", "teapot", "vase",
)  # fmt: skip
_COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "bench", "bird", "horse", "sheep", "cow", "elephant", "bear",
    "zebra", "giraffe", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "kite", "baseball bat", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass",
    "cup", "fork", "knife", "spoon", "banana", "apple", "sandwich", "orange", "broccoli", "carrot",
    "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table",
    "toilet", "television", "laptop", "computer mouse", "remote control", "keyboard", "phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "scissors", "hair dryer",
    "toothbrush",
)  # fmt: skip
_IMAGENET = (
    "fish", "shark", "frog", "turtle", "lizard", "snake", "crocodile", "dinosaur", "spider",
    "crab", "lobster", "snail", "jellyfish", "insect", "butterfly", "fox", "wolf", "lion", "tiger",
    "monkey", "rabbit", "hamster", "squirrel", "pig", "deer", "kangaroo", "koala", "panda",
    "penguin", "duck", "owl", "parrot", "chicken", "swan", "whale", "dolphin", "seal", "camel",
    "otter", "hedgehog", "guitar", "piano", "violin", "drum", "trumpet", "hat", "helmet", "shoe",
    "dress", "shirt", "jacket", "glove", "sock", "watch", "necklace", "ring", "mask", "pillow",
    "lamp", "mirror", "basket", "box", "bucket", "kettle", "pan", "plate", "hammer", "screwdriver",
    "camera", "radio", "microphone", "tent", "castle", "house", "church", "bridge", "lighthouse",
    "tower", "fountain", "statue", "tractor", "tank", "helicopter", "rocket", "robot", "doll",
    "ball", "balloon", "puppet", "mushroom", "flower", "tree", "strawberry", "lemon", "pineapple",
    "pumpkin", "bread", "hamburger", "ice cream", "perfume", "lipstick", "pen", "key", "coin",
)  # fmt: skip

KNOWN_NOUNS: tuple[str, ...] = tuple(dict.fromkeys((*_DREAMBOOTH, *_COCO, *_IMAGENET)))


def nouns_of(base: Base) -> tuple[str, ...]:
    """Return the nouns that the base's makers list in its dbray.yaml, else the bundled ones."""
    return base.class_nouns or KNOWN_NOUNS
