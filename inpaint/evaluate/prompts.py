"""The prompts that DreamBooth is evaluated with: 25 for objects, 25 for living subjects, four pictures of each.

Source: DreamBench (Ruiz 2023), https://github.com/google/dreambooth, CC BY 4.0; `{subject}` is the identifier and the
class there.
"""

PICTURES_PER_PROMPT = 4

_PLACES = (
    "a {subject} in the jungle",
    "a {subject} in the snow",
    "a {subject} on the beach",
    "a {subject} on a cobblestone street",
    "a {subject} on top of pink fabric",
    "a {subject} on top of a wooden floor",
    "a {subject} with a city in the background",
    "a {subject} with a mountain in the background",
    "a {subject} with a blue house in the background",
    "a {subject} on top of a purple rug in a forest",
)
_LOOKS = (
    "a red {subject}",
    "a purple {subject}",
    "a shiny {subject}",
    "a wet {subject}",
    "a cube shaped {subject}",
)
_OF_OBJECTS = (
    "a {subject} with a wheat field in the background",
    "a {subject} with a tree and autumn leaves in the background",
    "a {subject} with the Eiffel Tower in the background",
    "a {subject} floating on top of water",
    "a {subject} floating in an ocean of milk",
    "a {subject} on top of green grass with sunflowers around it",
    "a {subject} on top of a mirror",
    "a {subject} on top of the sidewalk in a crowded street",
    "a {subject} on top of a dirt road",
    "a {subject} on top of a white rug",
)
_OF_LIVING = (
    "a {subject} wearing a red hat",
    "a {subject} wearing a santa hat",
    "a {subject} wearing a rainbow scarf",
    "a {subject} wearing a black top hat and a monocle",
    "a {subject} in a chef outfit",
    "a {subject} in a firefighter outfit",
    "a {subject} in a police outfit",
    "a {subject} wearing pink glasses",
    "a {subject} wearing a yellow shirt",
    "a {subject} in a purple wizard outfit",
)


def dreambench_prompts(subject: str, *, living: bool) -> list[str]:
    """The 25 prompts of a subject: `sks dog`, or `dog` for the class alone."""
    return [form.format(subject=subject) for form in (*_PLACES, *(_OF_LIVING if living else _OF_OBJECTS), *_LOOKS)]
