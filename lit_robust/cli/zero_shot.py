"""``lit-robust class-vectors``: the head of a CLIP-like network, from the names of classes."""

from pathlib import Path

from lit_robust.core.errors import UserError


def class_vectors(
    model: str, weights: Path, output: Path, *, classes: str = "imagenet", prompts: str = "openai"
) -> None:
    """Write the class vectors of one of open_clip's networks, with which it classifies though nobody trained it to.

    Needs the package open_clip_torch: install lit-robust[clip].

    Args:
        model: open_clip's name, such as ViT-B-32
        weights: file of the whole network, image and text tower; nothing in it is run
        output: file to write, .safetensors
        classes: imagenet: the names that OpenAI gave its 1,000 classes; or a text file, a name a line, in the order of
            the classes' numbers
        prompts: openai: its 80 prompts for ImageNet; simple: the 7 best of them; or a text file, a sentence a line in
            which {} stands for a class
    """
    import torch

    from lit_robust.core.files import file_sha256, write_tensors
    from lit_robust.models.zero_shot import class_vectors as made_of

    if output.suffix != ".safetensors":
        raise UserError(f"{output} does not end in .safetensors: give a name that does.")
    try:
        from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
    except ImportError as error:
        raise UserError("Class vectors need the package open_clip_torch: install lit-robust[clip].") from error
    names = list(IMAGENET_CLASSNAMES) if classes == "imagenet" else _lines("classes", classes)
    known = {"openai": OPENAI_IMAGENET_TEMPLATES, "simple": SIMPLE_IMAGENET_TEMPLATES}
    sentences = [say("{}") for say in known[prompts]] if prompts in known else _lines("prompts", prompts)
    vectors, scale = made_of(model, weights, names, sentences)
    about = {"model": model, "weights_sha256": file_sha256(weights), "prompts": "\n".join(sentences)}
    write_tensors(output, {"text": vectors, "logit_scale": torch.tensor(scale)}, about)
    tower = f"{{name: lit_robust.models.zero_shot:clip_tower, arguments: {{model: {model}}}, weights: {weights}}}"
    print(
        f"Wrote {len(vectors):,} vectors of {vectors.shape[1]} dimensions to {output}.\nNext: lit-robust test -c "
        "eval/quick --model.network.name lit_robust.models.zero_shot:zero_shot "
        f"--model.network.num_classes {len(vectors)} "
        f'--model.network.arguments "{{tower: {tower}, text: {output}}}"'
    )


def _lines(option: str, file: str) -> list[str]:
    try:
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"The {option} {file} cannot be read ({error}): give a text file.") from error
    if "" in lines or not lines:
        raise UserError(
            f"Line {lines.index('') + 1 if lines else 1} of {file} is empty: give one of the {option} a line."
        )
    return lines
