"""Block weights: assignments, presets, exchanged lists, rules over names, the printed table."""

from __future__ import annotations

import re
from math import isclose
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_tools import FULL, NAMES, rows
from sdsurgery import layouts
from sdsurgery.errors import UsageError
from sdsurgery.layouts import UNKNOWN, Layout
from sdsurgery.layouts.blocks import blocks_table, parse_blocks, parse_rules
from sdsurgery.layouts.presets import PRESETS, preset

SD1 = layouts.get("sd1")
XL = layouts.get("sdxl-base")
REFINER = layouts.get("sdxl-refiner")
UNET_25 = (*(f"IN{i:02d}" for i in range(12)), "M00", *(f"OUT{i:02d}" for i in range(12)))
UNET_19 = (*(f"IN{i:02d}" for i in range(9)), "M00", *(f"OUT{i:02d}" for i in range(9)))

# Blocks 1, 9, 12 (M00), 15 and 23 of each preset as the extension publishes them.
PUBLISHED = {
    "GRAD_V": (0.9166666667, 0.25, 0, 0.25, 0.9166666667),
    "GRAD_A": (0.0833333333, 0.75, 1, 0.75, 0.0833333333),
    "FLAT_25": (0.25, 0.25, 0.25, 0.25, 0.25),
    "FLAT_75": (0.75, 0.75, 0.75, 0.75, 0.75),
    "WRAP08": (1, 0, 0, 0, 1),
    "WRAP12": (1, 0, 0, 0, 1),
    "WRAP14": (1, 0, 0, 0, 1),
    "WRAP16": (1, 0, 0, 0, 1),
    "MID12_50": (0, 0.5, 0.5, 0.5, 0),
    "OUT07": (0, 0, 0, 0, 1),
    "OUT12": (0, 0, 0, 1, 1),
    "OUT12_5": (0, 0, 0.5, 1, 1),
    "RING08_SOFT": (0, 0.5, 0, 0.5, 0),
    "RING08_5": (0, 1, 0, 1, 0),
    "RING10_5": (0, 1, 0, 1, 0),
    "RING10_3": (0, 1, 0, 1, 0),
    "SMOOTHSTEP": (0.00506365740740741, 0.31640625, 0.5, 0.68359375, 0.994936342592593),
    "REVERSE-SMOOTHSTEP": (0.994936342592593, 0.68359375, 0.5, 0.31640625, 0.00506365740740744),
    "SMOOTHSTEP*2": (0.0101273148148148, 0.6328125, 1, 0.6328125, 0.0101273148148153),
    "R_SMOOTHSTEP*2": (0.989872685185185, 0.3671875, 0, 0.3671875, 0.989872685185185),
    "SMOOTHSTEP*3": (0.0151909722222222, 0.94921875, 0.5, 0.0507812500000004, 0.984809027777777),
    "R_SMOOTHSTEP*3": (0.984809027777778, 0.05078125, 0.5, 0.94921875, 0.0151909722222232),
    "SMOOTHSTEP*4": (0.0202546296296296, 0.734375, 0, 0.734375000000001, 0.0202546296296307),
    "R_SMOOTHSTEP*4": (0.97974537037037, 0.265625, 1, 0.265624999999999, 0.979745370370369),
    "SMOOTHSTEP/2": (0.0196759259259259, 0.84375, 1, 0.84375, 0.0196759259259259),
    "R_SMOOTHSTEP/2": (0.980324074074074, 0.15625, 0, 0.15625, 0.980324074074074),
    "SMOOTHSTEP/3": (0.04296875, 0.95703125, 0.5, 0.04296875, 0.95703125),
    "R_SMOOTHSTEP/3": (0.95703125, 0.04296875, 0.5, 0.95703125, 0.04296875),
    "SMOOTHSTEP/4": (0.0740740740740741, 0.5, 0, 0.5, 0.0740740740740741),
    "R_SMOOTHSTEP/4": (0.925925925925926, 0.5, 1, 0.5, 0.925925925925926),
    "COSINE": (0.995722430686905, 0.691341716182545, 0.5, 0.308658283817455, 0.00427756931309475),
    "REVERSE_COSINE": (0.00427756931309475, 0.308658283817455, 0.5, 0.691341716182545, 0.995722430686905),
    "TRUE_CUBIC_HERMITE": (0.199031876929012, 0.589029947916667, 0.520833333333333, 0.45263671875, 0.842634789737655),
    "TRUE_REVERSE_CUBIC_HERMITE": (
        0.800968123070988,
        0.410970052083333,
        0.479166666666667,
        0.54736328125,
        0.157365210262345,
    ),
    "FAKE_CUBIC_HERMITE": (0.157576195987654, 0.560546875, 0.5, 0.439453125, 0.842423804012347),
    "FAKE_REVERSE_CUBIC_HERMITE": (0.842423804012346, 0.439453125, 0.5, 0.560546875, 0.157576195987653),
    "ALL_A": (0, 0, 0, 0, 0),
    "ALL_B": (1, 1, 1, 1, 1),
}


class TestAssignments:
    def test_single_blocks_and_ranges_are_set_and_nothing_else(self) -> None:
        assert parse_blocks("IN04=0.3,OUT05-OUT08=0.8,BASE=0.5", SD1) == {
            "IN04": 0.3,
            "OUT05": 0.8,
            "OUT06": 0.8,
            "OUT07": 0.8,
            "OUT08": 0.8,
            "BASE": 0.5,
            "VAE": 0.5,
        }

    def test_the_vae_follows_base_unless_set(self) -> None:
        assert parse_blocks("BASE=0.4", SD1)["VAE"] == 0.4
        assert parse_blocks("VAE=0.1,BASE=0.4", SD1)["VAE"] == 0.1
        assert parse_blocks("BASE=0.4,VAE=0", XL)["VAE"] == 0
        assert "VAE" not in parse_blocks("IN00=1", SD1)

    def test_ranges_run_over_the_middle_in_the_familys_order(self) -> None:
        assert list(parse_blocks("IN10-OUT01=1", SD1)) == ["IN10", "IN11", "M00", "OUT00", "OUT01"]
        assert list(parse_blocks("IN07-OUT01=1", XL)) == ["IN07", "IN08", "M00", "OUT00", "OUT01"]
        assert len(parse_blocks("IN00-OUT11=1", REFINER)) == 25

    def test_later_assignments_win_and_blanks_and_case_do_not_matter(self) -> None:
        assert parse_blocks(" in00 - in02 = 0.1 , IN1=0.9 ,M=0.2", SD1) == {
            "IN00": 0.1,
            "IN01": 0.9,
            "IN02": 0.1,
            "M00": 0.2,
        }

    def test_short_block_names_of_other_tools_are_understood(self) -> None:
        assert list(parse_blocks("IN4=1,OUT3=1,M=1", SD1)) == ["IN04", "OUT03", "M00"]
        assert list(parse_blocks("MID=1", SD1)) == ["M00"]

    def test_ratios_outside_0_to_1_are_allowed(self) -> None:
        assert parse_blocks("IN00=-0.5,IN01=1.5", SD1) == {"IN00": -0.5, "IN01": 1.5}

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("IN12=1", "has no block 'IN12'; did you mean 'IN11'"),
            ("OUT3O=1", "has no block 'OUT3O'"),
            ("VEA=1", "did you mean 'VAE'"),
            ("OUT08-OUT05=1", "runs backwards; write OUT05-OUT08"),
            ("IN00=x", "'IN00=x' needs a finite number"),
            ("IN00=nan", "needs a finite number"),
            ("IN00=", "needs a finite number"),
            ("IN00", "neither an assignment nor a preset"),
            ("", "the list is empty"),
            ("IN00=1,GRAD_V", "must come first"),
            ("GRAD_X", "did you mean 'GRAD_"),
            ("IN00=1,,IN01=1", "neither an assignment nor a preset"),
            ("IN\x1b00=1", r"has no block 'IN\x1b00'"),
        ],
    )
    def test_mistakes_are_refused_in_one_line(self, text: str, reason: str) -> None:
        with pytest.raises(UsageError, match=re.escape(reason)) as caught:
            parse_blocks(text, SD1)
        assert str(caught.value).isprintable()

    def test_a_family_without_those_blocks_refuses_them(self) -> None:
        with pytest.raises(UsageError, match="has no block 'IN09'"):
            parse_blocks("IN09=1", XL)
        with pytest.raises(UsageError, match="has no U-Net"):
            parse_blocks("GRAD_V", layouts.get("vae-kl-f8"))
        with pytest.raises(UsageError, match="has no U-Net"):
            parse_blocks(",".join(["1"] * 25), layouts.get("vae-kl-f8"))
        assert parse_blocks("VAE=1", layouts.get("vae-kl-f8")) == {"VAE": 1}


class TestPresets:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_formulas_give_the_published_values(self, name: str) -> None:
        values = preset(name)
        assert values is not None
        assert len(values) == 25
        found = [values[i] for i in (1, 9, 12, 15, 23)]
        assert all(isclose(a, b, abs_tol=1e-10) for a, b in zip(found, PUBLISHED[name], strict=True)), found

    def test_every_preset_is_checked_and_stays_within_0_and_1(self) -> None:
        assert set(PRESETS) == set(PUBLISHED)
        assert all(-1e-12 <= value <= 1 + 1e-12 for values in PRESETS.values() for value in values)

    def test_presets_are_float64(self) -> None:
        assert {type(value) for values in PRESETS.values() for value in values} == {float}

    def test_step_presets_have_their_edges_where_the_extension_has_them(self) -> None:
        def ones(name: str) -> list[int]:
            return [i for i, value in enumerate(PRESETS[name]) if value == 1]

        assert ones("WRAP08") == [0, 1, 2, 3, 21, 22, 23, 24]
        assert ones("WRAP14") == [*range(7), *range(18, 25)]
        assert ones("OUT07") == list(range(18, 25))
        assert ones("RING08_SOFT") == [6, 7, 8, 16, 17, 18]
        assert ones("RING08_5") == [6, 7, 8, 9, 15, 16, 17, 18]
        assert ones("RING10_5") == [5, 6, 7, 8, 9, 15, 16, 17, 18, 19]
        assert ones("RING10_3") == [6, 7, 8, 9, 10, 14, 15, 16, 17, 18]
        assert [i for i, value in enumerate(PRESETS["MID12_50"]) if value] == list(range(5, 19))
        assert (PRESETS["TRUE_CUBIC_HERMITE"][0], PRESETS["TRUE_CUBIC_HERMITE"][24]) == (0, 1)

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_a_preset_sets_the_25_unet_blocks_and_not_base(self, name: str) -> None:
        weights = parse_blocks(name, SD1)
        assert tuple(weights) == UNET_25
        assert tuple(weights.values()) == PRESETS[name]

    def test_for_xl_the_last_three_inputs_and_outputs_are_left_out(self) -> None:
        weights = parse_blocks("COSINE", XL)
        values = PRESETS["COSINE"]
        assert tuple(weights) == UNET_19
        assert tuple(weights.values()) == (*values[:9], values[12], *values[13:22])

    def test_assignments_after_a_preset_override_it(self) -> None:
        weights = parse_blocks("grad_v,BASE=0.5,M00=0.9", SD1)
        assert (weights["IN00"], weights["M00"], weights["BASE"], weights["VAE"]) == (1, 0.9, 0.5, 0.5)

    def test_other_spellings_are_understood(self) -> None:
        assert preset("R_SMOOTHSTEP") == preset("reverse_smoothstep") == PRESETS["REVERSE-SMOOTHSTEP"]
        assert preset("SMOOTHSTEP3") == PRESETS["SMOOTHSTEP*3"]


class TestLists:
    @pytest.mark.parametrize("layout", [SD1, layouts.get("sd2"), REFINER, layouts.get("sd2-x4-upscaler"), UNKNOWN])
    def test_25_numbers_are_the_unet_and_26_have_base_in_front(self, layout: Layout) -> None:
        numbers = [i / 100 for i in range(26)]
        text = ",".join(map(str, numbers[1:]))
        assert parse_blocks(text, layout) == dict(zip(UNET_25, numbers[1:], strict=True))
        weights = parse_blocks(",".join(map(str, [0.7, *numbers[1:]])), layout)
        assert weights == {"BASE": 0.7, **dict(zip(UNET_25, numbers[1:], strict=True)), "VAE": 0.7}

    @pytest.mark.parametrize("layout", [XL, layouts.get("sdxl-inpainting"), UNKNOWN])
    def test_xl_takes_19_20_with_base_and_21_with_base_and_vae(self, layout: Layout) -> None:
        numbers = [i / 100 for i in range(21)]
        unet = dict(zip(UNET_19, numbers[1:20], strict=True))
        assert parse_blocks(",".join(map(str, numbers[1:20])), layout) == unet
        assert parse_blocks(",".join(map(str, numbers[:20])), layout) == {"BASE": 0, **unet, "VAE": 0}
        assert parse_blocks(",".join(map(str, numbers)), layout) == {"BASE": 0, **unet, "VAE": 0.2}

    @pytest.mark.parametrize(
        ("layout", "count"), [(SD1, 24), (SD1, 27), (SD1, 19), (XL, 25), (XL, 26), (XL, 22), (XL, 2)]
    )
    def test_other_lengths_are_refused_with_the_right_ones(self, layout: Layout, count: int) -> None:
        wanted = "25 .* 26" if layout is SD1 else "19 .* 20 .* 21"
        with pytest.raises(UsageError, match=f"{count} numbers given, .* needs {wanted}"):
            parse_blocks(",".join(["0.5"] * count), layout)

    @pytest.mark.parametrize("layout", [SD1, XL])
    def test_one_number_is_that_of_all_blocks_and_base(self, layout: Layout) -> None:
        found = parse_blocks("0.3", layout)
        assert set(found.values()) == {0.3}
        assert set(found) == set(layout.blocks)

    @given(st.text(alphabet="INOUTMBASEVGRD_*/-=.,0123456789 \n", max_size=40), st.sampled_from(layouts.all_layouts()))
    def test_any_text_is_understood_or_refused(self, text: str, layout: Layout) -> None:
        try:
            weights = parse_blocks(text, layout)
        except UsageError:
            return
        assert set(weights) <= set(layout.blocks)


class TestRules:
    def test_the_last_matching_rule_wins(self) -> None:
        rules = parse_rules(
            r"""
            # attention a little, cross-attention more
            \.attn\d\. = 0.3
            \.attn2\.to_[kv] = 0.9

            ^first_stage_model\. = 0   # the VAE stays
            """
        )
        assert rules.ratio("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight") == 0.3
        assert rules.ratio("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight") == 0.9
        assert rules.ratio("first_stage_model.decoder.conv_in.weight") == 0
        assert rules.ratio("model.diffusion_model.out.2.weight") is None

    def test_the_last_equals_sign_separates(self) -> None:
        assert parse_rules("(?=out)out = 1").ratio("model.out.2") == 1

    def test_no_rules_match_nothing(self) -> None:
        assert parse_rules("# nothing\n\n").ratio("x") is None

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("a=1\nattn", "line 2: expected REGEX = NUMBER, found 'attn'"),
            ("=1", "line 1: expected"),
            ("a=b", "line 1: 'b' is not a finite number"),
            ("a=inf", "'inf' is not a finite number"),
            ("# c\n(a = 1", "line 2: '(a': missing"),
            ("a\x1b", r"found 'a\x1b'"),
        ],
    )
    def test_mistakes_are_refused_with_the_line(self, text: str, reason: str) -> None:
        with pytest.raises(UsageError, match=re.escape(reason)):
            parse_rules(text)


class TestTable:
    @pytest.mark.parametrize("name", NAMES)
    def test_the_table_counts_every_tensor_once_in_block_order(self, name: str) -> None:
        layout = layouts.get(name)
        header, *lines = blocks_table(layout)
        assert header == "block\tcomponent\ttensors\telements\tprefix"
        cells = [line.split("\t") for line in lines]
        assert sum(int(row[2]) for row in cells) == len(layout.tensors())
        order = [(*layout.blocks, "-").index(row[0]) for row in cells]
        assert order == sorted(order)
        assert {row[0] for row in cells} <= {*layout.blocks, "-"}

    @pytest.mark.parametrize("name", [name for name in FULL if "unclip" not in name and "upscaler" not in name])
    def test_every_block_has_tensors(self, name: str) -> None:
        layout = layouts.get(name)
        assert {line.split("\t")[0] for line in blocks_table(layout)} - {"block", "-"} == set(layout.blocks)

    def test_a_family_without_tensors_is_refused(self) -> None:
        with pytest.raises(UsageError, match="not known"):
            list(blocks_table(UNKNOWN))

    def test_blocks_and_counts_equal_the_reference_table(self, reference: Path) -> None:
        table = rows(reference / "blocks.tsv")
        for family in ("sd1", "sd2", "sdxl-base"):
            prefixes = {row["ldm_prefix"]: row for row in table if row["family"] == family}
            counts = dict.fromkeys(prefixes, 0)
            for tensor in layouts.get(family).tensors():
                fitting = [prefix for prefix in prefixes if tensor.key.startswith(prefix)]
                if tensor.component == "buffers" and tensor.key not in prefixes:
                    continue  # the reference lists one buffer for all
                prefix = max(fitting, key=len)
                counts[prefix] += 1
                assert (tensor.block or "-", tensor.component) == (
                    prefixes[prefix]["block"],
                    prefixes[prefix]["component"],
                ), tensor.key
            assert counts == {prefix: int(row["tensors"]) for prefix, row in prefixes.items()}
