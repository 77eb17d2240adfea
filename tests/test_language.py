"""What every encoding must do on a line of text, and what the measure of the language chapter promises."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sivit.language as language
from sivit.language import (
    CausalLanguageModel,
    CausalPosition,
    LanguageModelConfig,
    TextTraining,
    character_losses,
    decode_text,
    encode_text,
    project_text,
    read_positions,
    split_text,
    text_loss,
    train_on_text,
)  # fmt: skip
from sivit.position import POSITIONS, create_position, list_positions
from sivit.recipe import create_optimiser, parameter_groups

torch.set_num_threads(1)
CAUSAL = [name for name in list_positions() if not POSITIONS[name].reads_neighbours]
VOCABULARY = "abcdefghijklmnop"
every_encoding = pytest.mark.parametrize("name", CAUSAL)


def build(name, *, length=16, seed=0, **options):
    "A model whose positions have something to say."
    torch.manual_seed(seed)
    config = LanguageModelConfig(VOCABULARY, length=length, dim=32, position=name, position_options=options)
    model = CausalLanguageModel(config)
    with torch.no_grad():
        for parameter in model.encoder.position.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def random_text(*shape, seed=0):
    return torch.randint(len(VOCABULARY), shape, generator=torch.Generator().manual_seed(seed))


@every_encoding
@pytest.mark.parametrize("n", [16, 32, 56, 2])
@pytest.mark.parametrize("training", [False, True])
def test_a_later_character_changes_no_earlier_answer(name, n, training):
    model, codes = build(name).train(training), random_text(3, n)
    for place in {1, n // 2, n - 1}:
        changed = codes.clone()
        changed[:, place:] = (changed[:, place:] + 3) % len(VOCABULARY)
        answers = []
        for text in (codes, changed):
            torch.manual_seed(1)  # of the jitter
            answers.append(model(text))
        torch.testing.assert_close(answers[0][:, :place], answers[1][:, :place])
        assert not torch.allclose(answers[0][:, place], answers[1][:, place], atol=1e-3)


@every_encoding
def test_no_gradient_comes_from_the_future_and_all_of_it_from_the_past(name):
    model, codes = build(name), random_text(1, 24)
    tokens = model.encoder.patch_embed(codes).detach().requires_grad_()
    model.encoder.patch_embed.forward = lambda _: tokens
    model(codes)[0, 10].square().sum().backward()
    reached = tokens.grad[0, 0].abs().sum(-1)
    assert not reached[11:].any() and reached[:11].all()


def test_the_mask_is_kept_per_length_and_never_stale():
    model = build("alibi")
    with torch.no_grad():
        before = [model(random_text(2, n)) for n in (16, 40, 5)]
        after = [model(random_text(2, n)) for n in (16, 40, 5)]
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first, second)
    assert {key[0] for key in model.encoder.position._biases.entries} == {(1, 16), (1, 40), (1, 5)}


@every_encoding
def test_half_precision_is_finite_and_near(name):
    model, codes = build(name), random_text(2, 40)
    single, half = model(codes), model.bfloat16()(codes)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
    assert (half.float() - single).norm() / single.norm() < 0.1


@every_encoding
@pytest.mark.parametrize("times", [1 / 16, 1, 2, 3.5, 8])
def test_any_length_is_read(name, times):
    codes = random_text(2, round(16 * times))
    model = build(name)
    logits = model(codes)
    assert logits.shape == (*codes.shape, len(VOCABULARY)) and logits.isfinite().all()
    torch.testing.assert_close(model(codes[1:]), logits[1:], atol=1e-5, rtol=1e-4)  # whatever the batch


@pytest.mark.parametrize("name", sorted(set(list_positions()) - set(CAUSAL)))
def test_an_encoding_that_convolves_is_refused(name):
    with pytest.raises(ValueError, match="would show each the one after it; choose an encoding without a convolution"):
        build(name)


@every_encoding
def test_causal_is_the_encoding_itself_but_for_the_future(name):
    inner = create_position(name, 32, 4, 2, (1, 12)).eval()
    outer, x = CausalPosition(inner).eval(), torch.randn(2, 1, 20, 32)
    assert torch.equal(outer.embed(x), inner.embed(x))
    assert (outer.site, outer.per_block) == (inner.site, inner.per_block)
    q, k = torch.randn(2, 2, 4, 20, 8)
    for mine, its in zip(outer.rotate(q, k, (1, 20), 1), inner.rotate(q, k, (1, 20), 1), strict=True):
        assert torch.equal(mine, its)
    bias, own = outer.bias((1, 20), 1), inner.bias((1, 20), 1)
    past = torch.ones(20, 20, dtype=torch.bool).tril()
    assert bias.shape == (4, 20, 20) and (bias[:, ~past] == -math.inf).all()
    assert torch.equal(bias[:, past], torch.zeros(4, 210) if own is None else own[:, past])
    for parameter, _ in inner.named_parameters():
        assert outer.block_of(f"inner.{parameter}") == inner.block_of(parameter)


@every_encoding
def test_one_batch_is_learned_by_heart(name):
    config = LanguageModelConfig(VOCABULARY, length=24, dim=32, position=name)
    codes = random_text(25, seed=3)  # there is one window only
    model, losses = train_on_text(config, codes, TextTraining(steps=80, batch_size=2, weight_decay=0.0), "cpu")
    assert losses[0] > 2 and character_losses(model, codes[None]).mean() < 0.05


def test_training_is_a_function_of_its_arguments_and_shows_all_encodings_the_same_windows(monkeypatch):
    seen, codes = [], random_text(300)

    def watched(model, windows):
        seen.append(windows)
        return character_losses(model, windows)

    monkeypatch.setattr(language, "character_losses", watched)
    runs = {}
    for name, seed in [("fuzzy", 0), ("fuzzy", 0), ("alibi", 0), ("fuzzy", 1)]:
        torch.rand(1)  # what went on before has no bearing
        config = LanguageModelConfig(VOCABULARY, length=8, dim=16, position=name)
        losses = train_on_text(config, codes, TextTraining(steps=4, seed=seed), "cpu")[1]
        runs.setdefault((name, seed), []).append(losses)
    assert runs["fuzzy", 0][0] == runs["fuzzy", 0][1] != runs["fuzzy", 1][0]
    first, second, other, reseeded = (torch.stack(seen[i : i + 4]) for i in range(0, 16, 4))
    assert torch.equal(first, second) and torch.equal(first, other) and not torch.equal(first, reseeded)
    assert first.shape == (4, 16, 9)


@every_encoding
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_optimiser_knows_every_parameter(name, decay):
    model = build(name)
    groups = parameter_groups(model, 0.05, 1e-3, decay)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    where = {id(p): group for group in groups for p in group["params"]}
    for parameter in model.encoder.position.parameters():
        assert where[id(parameter)]["weight_decay"] == 0
    assert where[id(model.head.weight)]["lr"] == 1e-3
    assert where[id(model.encoder.patch_embed.weight)]["lr"] == pytest.approx(1e-3 * decay**3)
    create_optimiser(model, TextTraining(layer_decay=decay), 10)


def test_recomputed_activations_give_the_same_gradient():
    model, codes, gradients = build("rpb"), random_text(2, 17), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        character_losses(model, codes).mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


@every_encoding
def test_what_was_saved_answers_alike(name, tmp_path):
    model, codes = build(name), random_text(2, 40)
    loaded = CausalLanguageModel.from_pretrained(model.save_pretrained(tmp_path))
    assert loaded.config == model.config and torch.equal(loaded(codes), model(codes))


def test_a_reading_can_be_saved_and_a_foreign_model_is_refused(tmp_path):
    model, codes = build("fuzzy", jitter=0.25), random_text(2, 40)
    other = read_positions(model, "continued")
    loaded = CausalLanguageModel.from_pretrained(other.save_pretrained(tmp_path))
    assert loaded.config.position == "factorized" and torch.equal(loaded(codes), other(codes))
    values = json.loads((tmp_path / "config.json").read_text())
    for change, reason in [
        ({"colour": "red"}, "no setting 'colour'"),
        ({"vocabulary": "abc"}, "size mismatch"),
        ({"vocabulary": "aa"}, "each once"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(values | change))
        with pytest.raises(ValueError, match=f"(?s)holds no CausalLanguageModel that can be loaded.*{reason}"):
            CausalLanguageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["learned", "fuzzy", "sincos"])
def test_two_readings_agree_at_the_reference_length_and_differ_beyond(name):
    model, codes = build(name), random_text(2, 56)
    stretched, continued = (read_positions(model, reading) for reading in ("stretched", "continued"))
    torch.testing.assert_close(stretched(codes[:, :16]), model(codes[:, :16]))
    torch.testing.assert_close(continued(codes[:, :16]), model(codes[:, :16]))
    assert not torch.allclose(stretched(codes), continued(codes), atol=1e-2)
    for n in (1, 9, 16, 40):
        torch.testing.assert_close(continued(codes)[:, :n], continued(codes[:, :n]), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(stretched(codes)[:, :n], stretched(codes[:, :n]), atol=1e-3)
    stretched.head.weight.data.zero_()  # a reading shares no weights with the model
    assert model.head.weight.all() and continued.head.weight.all()


@pytest.mark.parametrize("name", ["rope_axial", "alibi", "none"])
def test_what_continues_has_no_other_reading(name):
    with pytest.raises(ValueError, match=f"'{name}' and 'stretched' were given"):
        read_positions(build(name), "stretched")


@pytest.mark.parametrize("jitter", [0.5, 1.0])
def test_jitter_acts_along_the_line_only(jitter):
    fuzzy = create_position("fuzzy", 8, 2, 1, (1, 5), jitter=jitter).train()
    fuzzy.table.data = torch.arange(5.0).view(1, 5, 1).expand(1, 5, 8).clone()  # each vector says its place
    read = fuzzy.embed(torch.zeros(500, 1, 21, 8))[..., 0] * 21 / 5
    exact = (fuzzy.eval().embed(torch.zeros(1, 1, 21, 8))[..., 0] * 21 / 5)[:, 0]
    inside = slice(5, 16)
    shift = (read[:, 0] - exact)[:, inside]
    assert shift.abs().max() <= jitter + 1e-4 and shift.abs().max() > 0.95 * jitter and shift.mean().abs() < 0.05
    assert shift.std().item() == pytest.approx(jitter / 3**0.5, rel=0.05)  # uniform


def slow_losses(model, codes, length, stride, skip):
    "Loss by place, window by window."
    quarter = max(1, length // 4)
    begin, rows = skip - (length - quarter) - 1, []
    while begin + length < len(codes):
        logits = model(codes[None, begin : begin + length])[0]
        rows.append(F.cross_entropy(logits, codes[begin + 1 : begin + length + 1], reduction="none"))
        begin += stride
    return torch.stack(rows).mean(0)


@pytest.mark.parametrize(
    ("length", "stride", "skip"),
    [(16, None, None), (16, 1, 60), (13, 5, None), (3, 2, 9), (56, 14, 90), (1, 1, None)],
)
def test_the_loss_is_what_a_slow_count_gives(length, stride, skip):
    model, codes = build("rope_axial"), random_text(200)
    quarter = max(1, length // 4)
    expected = slow_losses(model, codes, length, stride or quarter, skip or length - quarter + 1)
    found = text_loss(model, codes, length, stride, skip)
    torch.testing.assert_close(torch.tensor(found.by_place), expected, atol=1e-5, rtol=1e-5)
    assert found.whole == pytest.approx(expected.mean().item(), abs=1e-5)
    assert found.late == pytest.approx(expected[-quarter:].mean().item(), abs=1e-5)


class Blind(CausalLanguageModel):
    "Its answer depends on nothing, so that its loss tells which characters were counted."

    def forward(self, codes):
        return torch.linspace(-3, 3, len(VOCABULARY)).expand(*codes.shape, -1)


@pytest.mark.parametrize("length", [8, 16, 32, 64])
def test_last_quarters_cover_the_same_characters_at_every_length(length):
    codes = random_text(64 + 48)
    expected = -torch.linspace(-3, 3, len(VOCABULARY)).log_softmax(0)[codes[64:]].mean()
    found = text_loss(Blind(build("none").config), codes, length, skip=64)
    assert found.late == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("length", [16, 32, 56])
def test_a_model_that_knows_nothing_has_the_logarithm_of_its_vocabulary(length):
    model = build("learned")
    nn.init.zeros_(model.head.weight), nn.init.zeros_(model.head.bias)
    found = text_loss(model, random_text(200), length)
    assert found.by_place == pytest.approx([math.log(16)] * length, abs=1e-6)
    assert found.whole == pytest.approx(math.log(16)) == found.late


def test_what_cannot_be_read_is_refused():
    assert decode_text(encode_text("badge", VOCABULARY), VOCABULARY) == "badge"
    assert len(encode_text("", VOCABULARY)) == 0
    with pytest.raises(ValueError, match="vocabulary of 16 characters lacks 'ß', 'é'; leave them out"):
        encode_text("aéßb", VOCABULARY)
    model = build("learned")
    for codes in (random_text(5), random_text(2, 0), random_text(2, 5).float()):
        with pytest.raises(ValueError, match="whole numbers \\(b, n\\) with at least one character"):
            model(codes)
    with pytest.raises(ValueError, match="Windows of 16 characters and the next need a longer text than 16 characters"):
        train_on_text(model.config, random_text(16), TextTraining(steps=1), "cpu")
    assert len(train_on_text(model.config, random_text(17), TextTraining(steps=1), "cpu")[1]) == 1
    with pytest.raises(ValueError, match="a text of at least 17 characters; it has 16"):
        text_loss(model, random_text(16), 16)
    assert len(text_loss(model, random_text(17), 16).by_place) == 16
    for field in ("steps", "batch_size", "learning_rate", "clip"):
        with pytest.raises(ValueError, match=f"{field} must be positive; 0 was given"):
            TextTraining(**{field: 0})
    for wrong, needed in [
        ({"dim": 30}, "heads must divide dim|multiple of heads"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"position_options": {"jitter": 1}}, "no option 'jitter'"),
    ]:
        with pytest.raises(ValueError, match=needed):
            CausalLanguageModel(LanguageModelConfig(VOCABULARY, **wrong))


def notebook(*sources, outputs=()):
    cells = [{"cell_type": "code", "source": source, "outputs": list(outputs)} for source in sources]
    return json.dumps({"cells": cells, "nbformat": 4})


def test_the_text_is_the_sources_in_the_order_of_the_book(tmp_path):
    notebooks = {
        "10_b": notebook(["x = 1\n", "y = 2"], "µ"),
        "02_a": notebook("first", outputs=[{"text": "printed"}]),
        "21_c": notebook("last"),
        "index": notebook("no chapter"),
    }
    for name, content in notebooks.items():
        (tmp_path / "nbs").mkdir(exist_ok=True)
        (tmp_path / "nbs" / f"{name}.ipynb").write_text(content, encoding="utf-8")
    chapters = project_text(tmp_path)
    assert list(chapters.items()) == [("02_a", "first\n"), ("10_b", "x = 1\ny = 2\n\nµ\n"), ("21_c", "last\n")]
    split = split_text(chapters, every=3)
    assert split.validation == {"10_b": chapters["10_b"]} and split.training == "first\n\nlast\n"
    assert split.characters == len("\n".join(chapters.values()))
    (tmp_path / "nbs" / "21_c.ipynb").write_text(notebook("last", outputs=[{"text": "printed"}]))
    assert split_text(project_text(tmp_path), every=3) == split  # outputs are no part of it
    (tmp_path / "nbs" / "21_c.ipynb").write_text(notebook("last."))
    assert split_text(project_text(tmp_path), every=3).sha256 != split.sha256
    with pytest.raises(ValueError, match="every must lie between 2 and the number of chapters, 3; 4 was given"):
        split_text(chapters, every=4)
    with pytest.raises(ValueError, match="has no chapters in nbs/"):
        project_text(tmp_path / "elsewhere")
