"""The verbs and their flags. Every verb is a function `(arguments) -> exit code`, imported when it runs."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from studio import __version__
from studio.cli.flags import EDITABLE, add_settings
from studio.config import GenerateConfig, TrainConfig
from studio.errors import SettingsError

Verb = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """argparse that says what is wrong in one line, as every other error is said."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, allow_abbrev=False, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; see {self.prog} --help")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments with their verb as `run`. Raises SettingsError for anything unknown."""
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [flag for action in arguments.parser._actions for flag in action.option_strings]
        flag = unknown[0].split("=")[0]
        near = difflib.get_close_matches(flag, known, n=1)
        word = "setting" if flag.startswith("-") else "argument"
        raise SettingsError(f"unknown {word} {flag!r}" + (f"; did you mean {near[0]}?" if near else f"; see {arguments.parser.prog} --help"))
    return arguments


def build_parser() -> Parser:
    parser = Parser(prog="lora-studio", description="Train, stack and share LoRAs for image models, on your own machine.")
    parser.add_argument("--version", action="version", version=f"lora-studio {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    _add_serve(verbs)
    _add_train(verbs)
    _add_generate(verbs)
    _add_presets(verbs)
    _add_export(verbs)
    evaluate = _verb(verbs, "evaluate", "runs.evaluate", "the loss of every checkpoint of a run on pictures it has not seen, and which is best")
    evaluate.add_argument("run_name", metavar="RUN", help="a training run, by name or id")
    evaluate.add_argument("--images", metavar="SET", help="an image set to measure by; without it the pictures that the run held out")
    inspect = _verb(verbs, "inspect", "files.inspect", "what a file is: kind, family, rank, modules, metadata, hashes, and which programs load it")
    inspect.add_argument("file", metavar="FILE", help="a .safetensors file")
    inspect.add_argument("--base", metavar="BASE", help="say whether it fits this base model too")
    inspect.add_argument("--hashes", action="store_true", help="CRC32 and BLAKE3 too (BLAKE3 needs the package blake3)")
    _add_tools(verbs)
    _add_images(verbs)
    _add_library(verbs)
    _add_jobs(verbs)
    _add_base(verbs)
    _add_recipes(verbs)
    _add_bench(verbs)
    _verb(verbs, "doctor", "doctor.doctor", "check Python, torch, memory, disk, data folder, base models and port")
    return parser


def _lazy(target: str) -> Verb:
    module, _, name = target.partition(".")

    def run(arguments: argparse.Namespace) -> int:
        return getattr(import_module(f"studio.cli.{module}"), name)(arguments)

    return run


def _verb(verbs: "argparse._SubParsersAction[Parser]", name: str, target: str, words: str) -> Parser:
    parser = verbs.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    parser.add_argument("--data", metavar="DIR", help="data folder; else STUDIO_DATA, else the platform's user data folder")
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")
    parser.set_defaults(run=_lazy(target), parser=parser)
    return parser


def _group(verbs: "argparse._SubParsersAction[Parser]", name: str, words: str) -> "argparse._SubParsersAction[Parser]":
    parser = verbs.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    return parser.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)


def _add_serve(verbs: "argparse._SubParsersAction[Parser]") -> None:
    serve = _verb(verbs, "serve", "serving.serve", "the studio in the browser")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    serve.add_argument("--port", type=int, default=7860, help="port to listen on (default 7860)")
    serve.add_argument("--no-browser", action="store_true", help="do not open a browser window")


def _add_train(verbs: "argparse._SubParsersAction[Parser]") -> None:
    train = _verb(verbs, "train", "runs.train", "one training run in the foreground")
    train.add_argument("config", nargs="?", metavar="CONFIG.toml", help="settings by their names with underscores; flags win over it")
    train.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped; with --steps N, train a finished one N steps further")
    train.add_argument("--fork", action="store_true", help="with --resume RUN or RUN@STEP: a new run from its weights, with the settings named here changed")
    train.add_argument("--recipe", metavar="NAME", help="start from a recipe, see recipes list; CONFIG.toml and flags win over it")
    train.add_argument(
        "--sweep", action="append", default=[], metavar="SETTING=A,B,...", help="one run for every value, and for every combination of several --sweep"
    )
    train.add_argument("--plan", action="store_true", help="say what memory the run would take and how it would fit, with two steps on the GPU; train nothing")
    add_settings(train, TrainConfig)


def _add_generate(verbs: "argparse._SubParsersAction[Parser]") -> None:
    generate = _verb(verbs, "generate", "runs.generate", "pictures with a stack of LoRAs")
    generate.add_argument("config", nargs="?", metavar="CONFIG.toml", help="settings by their names with underscores; flags win over it")
    generate.add_argument("--output", metavar="DIR", required=True, help="folder for the pictures")
    generate.add_argument("--recall", metavar="PICTURE", help="take every setting from this picture, a file or one of the gallery; flags win over it")
    generate.add_argument("--preset", action="append", default=[], metavar="NAME", help="words and settings kept under this name; may be repeated")
    add_settings(generate, GenerateConfig)


def _add_presets(verbs: "argparse._SubParsersAction[Parser]") -> None:
    presets = _group(verbs, "presets", "words and settings for drawing, kept under names")
    _verb(presets, "list", "presets.list_presets", "all presets")
    save = _verb(presets, "save", "presets.save", "keep words and settings; {prompt} in the words stands for the prompt they are put around")
    save.add_argument("name", metavar="NAME")
    add_settings(save, GenerateConfig, leave_out=("seed", "init_image", "mask"))
    remove = _verb(presets, "remove", "presets.remove", "forget a preset")
    remove.add_argument("name", metavar="NAME")


def _add_export(verbs: "argparse._SubParsersAction[Parser]") -> None:
    export = _verb(verbs, "export", "runs.export", "a verified LoRA file for others")
    export.add_argument("source", metavar="RUN_OR_FILE", help="a run, RUN@STEP for a checkpoint of it, a name in the library, or a file")
    export.add_argument("--output", metavar="FILE", required=True, help="file to write")
    export.add_argument("--format", default="kohya", choices=("kohya", "peft"), help="kohya for web UIs and sharing sites, peft for diffusers (default kohya)")
    export.add_argument("--dtype", default="fp16", choices=("fp16", "bf16", "fp32"), help="number format in the file (default fp16)")
    export.add_argument("--report", action="store_true", help="print how the file was proven and which programs load it")
    export.add_argument("--side-files", action="store_true", help="write a preview picture, a card for web UIs and a text for Civitai beside it")
    export.add_argument("--no-thumbnail", action="store_true", help="leave the small preview picture out of the header")
    export.add_argument(
        "--tags", default="auto", choices=("auto", "always", "never"), help="count the words of captions in the header (default auto: if they are tags)"
    )


def _add_tools(verbs: "argparse._SubParsersAction[Parser]") -> None:
    merge = _verb(verbs, "merge", "tools.merge", "several LoRAs as one")
    merge.add_argument("loras", nargs="+", metavar="NAME_OR_FILE=WEIGHT", help="LoRAs of the library, runs or files, each with its weight (default 1)")
    merge.add_argument("--method", default="concat", choices=("concat", "svd"), help="concat is exact and adds up the ranks, svd is the best sum of --rank")
    merge.add_argument("--rank", metavar="R", help="rank of every layer; with --method svd")
    resize = _verb(verbs, "resize", "tools.resize", "a LoRA with smaller ranks")
    resize.add_argument("source", metavar="NAME_OR_FILE", help="a LoRA of the library, a run or a file")
    resize.add_argument("--rank", metavar="R", help="largest rank of a layer")
    resize.add_argument("--energy", metavar="X", help="share of every layer's squared norm to keep, for example 0.99; ranks follow from it")
    extract = _verb(verbs, "extract", "tools.extract", "a LoRA from what a tuned model has more than its base")
    extract.add_argument("tuned", metavar="TUNED", help="the tuned model: a registered name, a diffusers folder or a .safetensors file")
    extract.add_argument("--base", required=True, metavar="B", help="the model it was tuned from")
    extract.add_argument("--rank", metavar="R", help="largest rank of a layer (default 32, or no limit with --energy)")
    extract.add_argument("--energy", metavar="X", help="share of every layer's squared norm to keep; ranks follow from it")
    extract.add_argument("--targets", default="full+conv", metavar="TARGETS", help="which layers may be carried (default full+conv)")
    extract.add_argument("--text-encoders", default=True, action=argparse.BooleanOptionalAction, help="carry text encoder layers too")
    probe = _verb(verbs, "probe", "tools.probe", "a smaller LoRA that predicts held-out pictures as well: every layer trimmed as far as they allow")
    probe.add_argument("source", metavar="RUN_OR_FILE", help="a run, RUN@STEP, a LoRA of the library, or a file")
    probe.add_argument("--images", metavar="SET", help="an image set to measure by; without it the pictures that the run held out")
    probe.add_argument("--base", metavar="B", help="the base of a LoRA that is no run of the studio")
    probe.add_argument("--tolerance", default="0.01", metavar="X", help="what may be lost, as a share of the loss that the LoRA saves (default 0.01)")
    for tool in (merge, resize, extract, probe):
        tool.add_argument("--output", metavar="FILE", help="file to write; without it the result joins the library")
        tool.add_argument("--name", help="name in the library and in the file")
        tool.add_argument(
            "--format", default="kohya", choices=("kohya", "peft"), help="kohya for web UIs and sharing sites, peft for diffusers (default kohya)"
        )
        tool.add_argument("--dtype", default="fp16", choices=("fp16", "bf16", "fp32"), help="number format in the file (default fp16)")
    stack = _group(verbs, "stack", "LoRAs together")
    check = _verb(stack, "check", "tools.check", "whether the LoRAs of a stack get into each other's way, and weights that suit them")
    check.add_argument("loras", nargs="+", metavar="NAME_OR_FILE=WEIGHT", help="LoRAs of the library, runs or files, each with its strength (default 1)")
    check.add_argument("--base", metavar="B", help="a base that they are to fit")
    bake = _verb(verbs, "bake", "tools.bake", "a base with LoRAs baked in, as a checkpoint of its own")
    bake.add_argument("--base", required=True, metavar="B", help="a registered name, a diffusers folder or a .safetensors file")
    bake.add_argument("--vae", metavar="PATH", help="another VAE: a folder or a .safetensors file")
    bake.add_argument("--lora", dest="loras", action="append", required=True, metavar="NAME_OR_FILE=WEIGHT", help="a LoRA and its weight; may be repeated")
    bake.add_argument("--output", required=True, metavar="CKPT", help="a .safetensors file, or a new folder for diffusers")
    bake.add_argument("--dtype", default="stored", choices=("stored", "fp16", "bf16", "fp32"), help="number format (default stored: that of the base)")


def _add_bench(verbs: "argparse._SubParsersAction[Parser]") -> None:
    bench = _verb(verbs, "bench", "bench.bench", "measured speed and memory beside a plain training loop and the limit of this machine")
    bench.add_argument("--families", default="sdxl,flux", help="by commas (default sdxl,flux)")
    bench.add_argument("--resolutions", default="64", metavar="PX", help="sides in pixels, by commas (default 64; 1024 for full-size bases)")
    bench.add_argument("--batches", default="1", metavar="N", help="pictures in one step, by commas (default 1)")
    bench.add_argument("--precisions", default="fp32", help="of fp32, bf16, fp16, by commas (default fp32)")
    modes = "of plain, plain-checkpointed, eager, graph, compile, fp8, auto, run (a whole run), by commas (default plain,eager)"
    bench.add_argument("--modes", default="plain,eager", help=modes)
    bench.add_argument("--tasks", default="train", help="of train, generate, memory, by commas (default train)")
    bench.add_argument("--budgets", default="0", metavar="GB", help="task memory: what whole runs may take of the card, by commas; 0 is all (default 0)")
    bench.add_argument("--weights", default="demo", help="demo, random (full-size architectures, no download) or a base (default demo)")
    bench.add_argument("--steps", default="20", metavar="N", help="timed steps of every row (default 20)")
    bench.add_argument("--out", metavar="DIR", help="keep finished rows there; a later call with it measures only what is missing")


def _add_images(verbs: "argparse._SubParsersAction[Parser]") -> None:
    images = _group(verbs, "images", "image sets")
    _verb(images, "list", "sets.list_sets", "all image sets")
    show = _verb(images, "show", "sets.show", "the pictures of a set with their captions")
    show.add_argument("name", metavar="SET")
    add = _verb(images, "import", "sets.import_set", "make an image set from pictures, with captions beside them")
    add.add_argument("source", nargs="+", metavar="FOLDER_OR_FILE", help="a folder, or pictures, .txt captions of the same names and .zip files")
    add.add_argument("--name", help="name of the set (default: that of the first source)")
    add.add_argument("--trigger", default="", help="word that calls what the pictures show")
    remove = _verb(images, "remove", "sets.remove", "remove an image set; its trash keeps it for a while")
    remove.add_argument("name", metavar="SET")
    caption = _verb(images, "caption", "sets.caption", "let a model write the captions of a set")
    caption.add_argument("name", metavar="SET", help="an image set of the studio")
    caption.add_argument("--model", required=True, metavar="M", help="image-to-text model: a folder or a hub id, such as Salesforce/blip-image-captioning-base")
    caption.add_argument("--prompt", default="", help="words a caption begins with, or what a model that chats is asked")
    caption.add_argument("--replace", action="store_true", help="write captions anew where there are some; otherwise those are kept")
    caption.add_argument("--max-tokens", default="75", metavar="N", help="longest caption, in the model's tokens (default 75)")
    uncaption = _verb(images, "uncaption", "sets.uncaption", "put back the captions that a caption job changed")
    uncaption.add_argument("id", metavar="JOB")


def _add_library(verbs: "argparse._SubParsersAction[Parser]") -> None:
    library = _group(verbs, "library", "LoRAs in the studio")
    listing = _verb(library, "list", "files.list_adapters", "all LoRAs")
    listing.add_argument("query", nargs="?", default="", metavar="QUERY", help="only those whose name, trigger or base holds this")
    add = _verb(library, "add", "files.add", "take a LoRA file into the library")
    add.add_argument("file", metavar="FILE", help="a .safetensors file; it is copied")
    show = _verb(library, "show", "files.show", "everything known about one LoRA")
    show.add_argument("name", metavar="NAME")
    edit = _verb(library, "edit", "files.edit", "change what a LoRA file says of itself; its tensors keep every byte")
    edit.add_argument("name", metavar="NAME_OR_FILE", help="a name in the library, or a .safetensors file; an empty value takes an entry out")
    for name, words in EDITABLE.items():
        edit.add_argument(f"--{name.replace('_', '-')}", metavar="TEXT", help=words)
    edit.add_argument("--picture", metavar="FILE", help="picture that becomes the thumbnail")
    edit.add_argument("--set", action="append", metavar="KEY=VALUE", help="any other entry")
    edit.add_argument("--unset", action="append", metavar="KEY", help="entry to take out")
    remove = _verb(library, "remove", "files.remove", "remove a LoRA; its trash keeps it for a while")
    remove.add_argument("name", metavar="NAME")


def _add_jobs(verbs: "argparse._SubParsersAction[Parser]") -> None:
    jobs = _group(verbs, "jobs", "the queue")
    _verb(jobs, "list", "queue.list_jobs", "all jobs, newest first")
    for name, words in (
        ("show", "one job: state, settings, result"),
        ("cancel", "stop a job; its checkpoints stay"),
        ("pause", "hold a queued job back, or stop a running training with a checkpoint and free its device"),
        ("pin", "keep the weights of a running training's next step as a checkpoint"),
        ("resume", "go on with a paused or stopped run from its last checkpoint"),
        ("retry", "run a job again from the start"),
        ("follow", "watch a job that runs already"),
        ("command", "the command line that asks for the same as a job did"),
    ):
        _verb(jobs, name, f"queue.{name}", words).add_argument("id", metavar="JOB")
    move = _verb(jobs, "move", "queue.move", "change the order of the queue")
    move.add_argument("id", metavar="JOB")
    move.add_argument("place", metavar="PLACE", help="place among the queued jobs; 1 is the next to run")
    priority = _verb(jobs, "priority", "queue.priority", "let a waiting job go before all of a lower priority")
    priority.add_argument("id", metavar="JOB")
    priority.add_argument("priority", metavar="N", help="a whole number, which may be negative; 0 is the usual one")
    duplicate = _verb(jobs, "duplicate", "queue.duplicate", "a new job like that one, with other settings where they are named")
    duplicate.add_argument("id", metavar="JOB")
    duplicate.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting by its name; may be repeated")


def _add_recipes(verbs: "argparse._SubParsersAction[Parser]") -> None:
    recipes = _group(verbs, "recipes", "starting points for training, each number with its reason and source")
    _verb(recipes, "list", "recipes.list_recipes", "all recipes")
    _verb(recipes, "show", "recipes.show", "the settings of a recipe, and why").add_argument("name", metavar="RECIPE")
    diff = _verb(recipes, "diff", "recipes.diff", "what of a recipe a run has otherwise")
    diff.add_argument("run_name", metavar="RUN")
    diff.add_argument("recipe", metavar="RECIPE")


def _add_base(verbs: "argparse._SubParsersAction[Parser]") -> None:
    base = _group(verbs, "base", "base models")
    _verb(base, "list", "bases.list_bases", "base models on this machine")
    add = _verb(base, "add", "bases.add", "register a diffusers folder or a .safetensors file under a name")
    add.add_argument("name", metavar="NAME")
    add.add_argument("path", metavar="PATH")
    add.add_argument("--vae", metavar="PATH", help="another VAE: a folder or a .safetensors file")
    add.add_argument("--encoders", metavar="PATH", help="where text encoders and VAE come from when the file holds the transformer alone")
    download = _verb(base, "download", "bases.download", "fetch a base model from the Hugging Face hub")
    download.add_argument("repo", metavar="OWNER/MODEL")
    download.add_argument("--token", help="access token for gated models; else HF_TOKEN or a stored login")
    remove = _verb(base, "remove", "bases.remove", "forget a registered base; the files of others stay where they are")
    remove.add_argument("name", metavar="NAME")
