"""TF32 as a property of a call: inside it is what was asked for, outside what the process had."""

from functools import partial

import pytest
import torch

from workbench.diffusion.precision import advanced_in, chosen_precision, reduced, tf32


def allowed() -> list[bool]:
    return [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]


def ambient() -> tuple:
    return (*allowed(), torch.get_float32_matmul_precision())


@pytest.fixture(params=["highest", "high", "medium"], autouse=True)
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("asked", [True, False])
def test_a_block_leaves_the_process_as_it_was(asked):
    before = ambient()
    with tf32(asked):
        assert allowed() == [asked, asked]
        assert torch.get_float32_matmul_precision() == ("high" if asked else "highest")
        with tf32(not asked):
            assert allowed() == [not asked, not asked]
        assert allowed() == [asked, asked]
    assert ambient() == before
    with pytest.raises(ZeroDivisionError), tf32(asked):
        _ = 1 / 0
    assert ambient() == before


def test_who_reads_a_generator_stays_outside():
    before, seen = ambient(), []

    def counting(fail: bool):
        try:
            for number in range(3):
                seen.append(allowed())
                if fail and number == 1:
                    raise ValueError("failed")
                yield number
        finally:
            seen.append(allowed())

    first, second = (advanced_in(partial(tf32, asked), counting(False)) for asked in (True, False))
    for pair in zip(first, second, strict=True):
        assert pair[0] == pair[1] and ambient() == before
    assert seen == [[True, True], [False, False]] * 4
    seen.clear()
    left = advanced_in(partial(tf32, True), counting(False))
    assert next(left) == 0
    left.close()
    with pytest.raises(ValueError, match="failed"):
        list(advanced_in(partial(tf32, True), counting(True)))
    assert seen == [[True, True]] * 5 and ambient() == before


@pytest.mark.parametrize(("asked", "found"), [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_are_in_the_asked_precision(asked, found):
    a = torch.ones(2, 2)
    with reduced(asked, "cpu"):
        assert (a @ a).dtype == found
    assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_bfloat16_where_the_machine_multiplies_it(monkeypatch, fast):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": fast}, raising=False)
    assert chosen_precision("auto") == ("bf16" if fast else "no")
    assert (chosen_precision("no"), chosen_precision("bf16")) == ("no", "bf16")


def test_other_words_for_a_precision_are_refused():
    with pytest.raises(ValueError, match="precision is 'fp16'; allowed are no, bf16, auto"):
        chosen_precision("fp16")
