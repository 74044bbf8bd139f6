"""The recipe of the embedded model, from the first stage to the last, at toy size."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from torch import nn

from training.autoencoder import LATENTS, Supervised, autoencoder, pictures
from training.exam import ASKED, exact, judge
from training.exam import photos as exam_photos
from training.export import load
from training.glimpse import SHOWN, glimpse
from training.loop import Plan, train
from training.make_mini import SMOKE, further, make
from training.model import MINI, SIDES, TINY, Editor, pack, positions_of, shifted, unpack
from training.muon import orthogonal
from training.photos import SOURCES
from training.principal import analysis, components
from training.tokenizers import CLIP_TOKENS, T5_TOKENS
from training.transformer import Case, draw, on_canvas, said

# Under autocast the text encoders normalise bfloat16 by float32 weights: slower, not wrong.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")

PAGE_PROMPT = (
    "Replace the background with a bokeh light effect, zooming in on the subject, keeping the person’s pose, position, "
    "scale, and camera angle identical. Only change the surrounding environment. "
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke recipe's folder; its runs lie beside it."""
    folder = tmp_path_factory.mktemp("mini")
    torch.set_num_threads(1)
    make(SMOKE, out=folder / "mini", runs=folder / "runs", device=torch.device("cpu"))
    return folder / "mini"


def test_the_recipe_writes_model_card_and_loss_curves(made: Path) -> None:
    assert (made / "README.md").read_text().startswith("# mini")
    for name, last in (("reading", "1"), ("transformer", "2"), ("decoder", "2")):
        with (made.parent / "runs" / f"{name}.csv").open() as file:
            assert [row["iteration"] for row in csv.DictReader(file)][-1] == last
        assert (made.parent / "runs" / f"{name}.png").stat().st_size > 1000


def test_a_glimpse_shows_the_photo_its_answers_and_the_exact_edits(made: Path, tmp_path: Path) -> None:
    glimpse(tmp_path / "glimpse.png", *load(made), size=(32, 48))
    with Image.open(tmp_path / "glimpse.png") as picture:
        assert picture.size == ((1 + len(SHOWN)) * 48, 2 * 32)
        above, below = (np.asarray(picture.crop((0, top, 48, top + 32))) for top in (0, 32))
    assert np.array_equal(above, below)


def test_a_finished_recipe_run_again_gives_the_same_weights(made: Path) -> None:
    """Every stage is taken up where it was: nothing is trained twice, nothing is drawn anew."""
    before = load(made)[0].state_dict()
    make(SMOKE, out=made, runs=made.parent / "runs", device=torch.device("cpu"))
    after = load(made)[0].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_finished_model_is_trained_further(made: Path, tmp_path: Path) -> None:
    """Transformer and text encoders learn on; tokenizers and autoencoder are the model's own."""
    further(SMOKE, begin=made, out=tmp_path / "more", runs=tmp_path / "runs", device=torch.device("cpu"))
    (before, vae_before), (after, vae_after) = load(made), load(tmp_path / "more")
    changed = {
        name.split(".")[0]
        for name, value in after.state_dict().items()
        if name in before.state_dict() and not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {"transformer", "text_encoder", "text_encoder_2"}
    for name in (
        "transformer/config.json",
        "vae/config.json",
        "tokenizer/tokenizer.json",
        "tokenizer_2/tokenizer.json",
    ):
        assert json.loads((tmp_path / "more" / name).read_text()) == json.loads((made / name).read_text())
    assert "learned for 1 iterations more" in (tmp_path / "more" / "README.md").read_text()
    assert before.tokenizer_2.get_vocab() == after.tokenizer_2.get_vocab()
    assert all(torch.equal(value, vae_after.state_dict()[name]) for name, value in vae_before.state_dict().items())


def test_what_was_trained_further_is_trained_further_again(made: Path, tmp_path: Path) -> None:
    """The state of the training before is another's: it would be taken for this one's end."""
    first, second = tmp_path / "first", tmp_path / "second"
    further(SMOKE, begin=made, out=first, runs=tmp_path / "runs", device=torch.device("cpu"))
    further(SMOKE, begin=first, out=second, runs=tmp_path / "runs", device=torch.device("cpu"))
    one, two = load(first)[0].state_dict(), load(second)[0].state_dict()
    assert not all(torch.equal(value, two[name]) for name, value in one.items())


def test_diffusers_runs_the_folder_as_our_sampler_does(made: Path) -> None:
    """Same weights, same noise: the recipe's sampler is FluxKontextPipeline's."""
    from diffusers import FluxKontextPipeline

    from training.model import sample

    pipeline = FluxKontextPipeline.from_pretrained(made)
    pipeline.set_progress_bar_config(disable=True)
    assert all(part.dtype == torch.float32 for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder))
    pixels = np.random.default_rng(0).integers(0, 256, (48, 32, 3), dtype=np.uint8)
    noise = torch.randn((1, LATENTS, 6, 4), generator=torch.Generator().manual_seed(3))
    theirs = pipeline(
        image=Image.fromarray(pixels),
        prompt="make it night",
        height=48,
        width=32,
        max_area=48 * 32,
        _auto_resize=False,
        num_inference_steps=3,
        guidance_scale=7.0,
        max_sequence_length=T5_TOKENS,
        latents=pack(noise),
        output_type="np",
    ).images[0]
    editor, vae = load(made)
    photo = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    ours = sample(editor, vae, photo, ["make it night"], guidance=7, steps=3, seed=3)
    assert np.abs(theirs - (ours[0].permute(1, 2, 0).numpy() / 2 + 0.5)).max() < 1e-4


def test_both_tokenizers_fold_case_and_fit_the_pages_own_prompt(made: Path) -> None:
    editor: Editor = load(made)[0]
    for tokenizer, most in ((editor.tokenizer, CLIP_TOKENS), (editor.tokenizer_2, T5_TOKENS)):
        assert tokenizer("Make it BLACK and White").input_ids == tokenizer("make it black and white").input_ids
        assert tokenizer.model_max_length == most
    text, pooled = editor.read(["", PAGE_PROMPT])
    assert text.shape == (2, T5_TOKENS, TINY.text_width)
    assert pooled.shape == (2, TINY.text_width)


def test_the_exams_photos_are_no_training_photos() -> None:
    """They lie in another package, and no training source names them."""
    assert all(source.package != "sklearn" for source in SOURCES)
    assert not any("china" in source.file or "flower" in source.file for source in SOURCES)


def test_the_exam_tells_every_exact_edit_from_the_others() -> None:
    """A model that answered exactly would get full marks: on each photo, for each edit asked."""
    for photo in exam_photos()[::4]:
        results = exact(photo)
        for edit in ASKED:
            mark = judge(photo, edit, results[edit])
            assert mark.nearest == edit
            assert mark.psnr_db > 60


def test_packing_is_undone_by_unpacking() -> None:
    latents = torch.randn(2, 16, 6, 4)
    assert torch.equal(unpack(pack(latents), 6, 4), latents)
    assert positions_of(6, 4, 1).tolist()[:3] == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]


def test_the_time_shift_is_the_schedulers() -> None:
    """Ends stay, the middle moves towards noise as diffusers' scheduler moves it."""
    from training.export import scheduler

    theirs = scheduler()
    theirs.set_timesteps(sigmas=np.linspace(1, 0.25, 4), mu=0.5 + (324 - 256) * 0.65 / 3840)
    assert torch.allclose(shifted(torch.linspace(1, 0.25, 4), 324), theirs.sigmas[:4], atol=1e-6)


def test_a_lesson_is_the_same_each_time_and_its_cases_point_into_it() -> None:
    """Resuming relies on it: everything drawn comes from the iteration's seed."""
    sizes = (((32, 32), (32, 48)), ((48, 48),))
    first, second = (draw(11, seed=0, native=0.5, sizes=sizes, tokens=400) for _ in range(2))
    assert first.cases == second.cases
    assert all(np.array_equal(a, b) for a, b in zip(first.targets, second.targets, strict=True))
    assert all(case.reference < len(first.references) for case in first.cases)
    assert all(max(case.still, case.edited) < len(first.targets) for case in first.cases)


def test_an_empty_sentence_is_said_as_it_is() -> None:
    """It belongs to no edit, and asks for the photo back."""
    rng = np.random.default_rng(0)
    assert said(Case(reference=0, still=0, edited=0, sentence=""), rng) == ""
    assert said(Case(reference=0, still=0, edited=1, edit="night"), rng)


def test_a_photo_is_cut_or_carried_on_to_another_canvas() -> None:
    photo = np.arange(2 * 3 * 3, dtype=np.float32).reshape(2, 3, 3)
    out = on_canvas(photo, 4, 2)
    assert np.array_equal(out[:2], photo[:, :2])
    assert np.array_equal(out[3], photo[1, :2])


def test_training_pictures_are_pixels_between_minus_one_and_one() -> None:
    batch = pictures(np.random.default_rng(0), 12, 32, 48)
    assert batch.shape == (12, 3, 32, 48)
    assert batch.dtype == torch.float32
    assert -1 <= batch.min() <= batch.max() <= 1
    assert batch.std() > 0.1


def test_the_analysis_computes_principal_components() -> None:
    """Its latents, made as large as the components are, are the blocks' projections on them."""
    photos = pictures(np.random.default_rng(0), 24, 64, 64)
    mean, directions, deviations = components(photos)
    latents = analysis(photos, LATENTS)(photos)
    blocks = photos
    for _ in range(3):
        blocks = nn.functional.pixel_unshuffle(blocks, 2)
    wanted = torch.einsum("kc,bchw->bkhw", directions[:LATENTS], blocks - mean[None, :, None, None])
    got = latents * (deviations[:LATENTS] * deviations[0]).sqrt()[None, :, None, None]
    assert (got - wanted).std() < 1e-4 * wanted.std()


def test_the_real_encoder_computes_what_the_one_convolution_does() -> None:
    """Through stride-2 convolutions, group normalisation and SiLU, on a photo of another kind and size."""
    vae, convolution = autoencoder(seed=0)
    photo = torch.from_numpy(exam_photos()[1]).permute(2, 0, 1)[None] * 2 - 1
    with torch.no_grad():
        latents = vae.encode(photo).latent_dist.mode()
    wanted = convolution(photo)
    assert (latents - wanted).abs().max() < 5e-3 * wanted.std()


def test_the_latents_lose_no_more_of_the_exams_photos_than_the_model_may() -> None:
    """27 dB are asked of encoder and decoder together; the best linear decoder of these latents gives more."""
    _, convolution = autoencoder(seed=0)
    rows = convolution.weight.flatten(1)
    decibels = []
    for photo in exam_photos():
        blocks = nn.functional.unfold(torch.from_numpy(photo).permute(2, 0, 1)[None] * 2 - 1, 8, stride=8)[0].T
        decoded = blocks @ rows.T @ torch.linalg.pinv(rows).T
        decibels.append(-10 * ((decoded - blocks).pow(2).mean() / 4).log10().item())
    assert np.mean(decibels) > 28


def test_a_supervised_decoder_gives_the_decoders_picture_and_a_guess_from_each_level() -> None:
    vae, _ = autoencoder(seed=0)
    supervised = Supervised(vae.decoder)
    latents = torch.randn(1, LATENTS, 4, 6)
    with torch.no_grad():
        picture, *guesses = supervised(latents)
        assert torch.equal(picture, vae.decoder(latents))
    assert [guess.shape for guess in guesses] == 2 * [picture.shape]


def test_a_fresh_decoder_has_its_latents_at_hand_on_every_level() -> None:
    """Without what the residual blocks add, its last features are the latents, repeated."""
    vae, _ = autoencoder(seed=0)
    latents = torch.randn(1, LATENTS, 4, 6)
    found: list[torch.Tensor] = []
    vae.decoder.conv_norm_out.register_forward_hook(lambda _module, given, _made: found.append(given[0]))
    with torch.no_grad():
        for module in vae.decoder.modules():
            if isinstance(module, ResnetBlock2D):
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
        vae.decoder(latents)
    assert torch.allclose(found[0], latents.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3), atol=1e-5)


def test_orthogonal_evens_out_the_singular_values() -> None:
    matrix = torch.diag(torch.tensor([1.0, 0.5, 0.1, 0.02])) @ torch.randn(
        4, 9, generator=torch.Generator().manual_seed(0)
    )
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Weights, averages, optimiser, learning rate and data all go on from the saved state."""

    def run(folder: Path, *, cut_at: int | None = None) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

        def batch(iteration: int) -> torch.Tensor:
            if iteration == cut_at:
                raise InterruptedError
            return torch.randn(5, 3, generator=torch.Generator().manual_seed(iteration))

        return train(
            model,
            [optimizer],
            batch,
            lambda x: {"loss": (model(x) - 1).pow(2).mean()},
            plan=Plan(iterations=12, rate=0.1, warmup=2, cooldown=0.9, save_every=3),
            runs=folder,
            name="line",
        )

    with pytest.raises(InterruptedError):
        run(tmp_path / "cut", cut_at=7)
    resumed, whole = run(tmp_path / "cut"), run(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_pointed_heads_look_where_they_are_told(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the reference's token of the same place; at the tokens around; at the text where the picture ends."""
    tokenizers = load(made)[0]
    torch.manual_seed(0)
    editor = Editor(MINI, tokenizers.tokenizer, tokenizers.tokenizer_2)
    side, seen = 18, []
    attend = nn.functional.scaled_dot_product_attention

    def watch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        if query.shape[2] == T5_TOKENS + 2 * side**2:
            seen.append(torch.softmax(query[0] @ key[0].transpose(1, 2) / query.shape[3] ** 0.5, dim=-1))
        return attend(query, key, value, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watch)
    noisy, reference = torch.randn(2, 1, LATENTS, 2 * side, 2 * side)
    with torch.no_grad():
        editor(noisy, reference, *editor.read(["make it night"]), torch.tensor([0.7]), torch.tensor([7.0]))

    def token(stream: int, row: int, column: int) -> int:
        return T5_TOKENS + (stream * side + row) * side + column

    first, second, third = seen[:3]
    middle = token(0, 9, 9)
    assert [weights[head, middle].argmax() for weights in seen for head in (0, 1)] == [token(1, 9, 9)] * 2 * len(seen)
    for weights, stream, far in ((first, 0, 1), (second, 0, 4), (third, 1, 1)):
        looks = [weights[head, middle].argmax() for head in (2, 3, 4, 5)]
        assert looks == [token(stream, 9 + far * down, 9 + far * right) for down, right in SIDES]
    borders = (token(0, 0, 9), token(0, 17, 9), token(0, 9, 0), token(0, 9, 17))
    for head, border in zip((2, 3, 4, 5), borders, strict=True):
        at_text = first[head, :, :T5_TOKENS].sum(dim=1)
        assert at_text[border] > 2 * at_text[middle]
