"""The card of SmolLM2's drafters says what is recorded of them, and what it says is counted by hand here."""

from pathlib import Path

import pandas as pd
import pytest

from specquant.decoding.method import Plan
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.study import write_results
from specquant.study.drafters import (
    CARD,
    FOLDERS,
    MARKERS,
    aims,
    by_scheme,
    by_task,
    markdown,
    recorded_table,
    told,
    write_drafters_card,
)

PLANS = (Plan("eagle2", 24, 3), Plan("eagle2", 60, 6), Plan("vanilla", 0, 0, 6), Plan("hierarchical", 30, 3, 6))


def acceptance() -> pd.DataFrame:
    """Two tasks of Spec-Bench, of 30 and 10 steps, and GSM8K; other schemes and temperatures do not count."""
    about = {"model": "smollm2", "weights": "trained", "acceptance": "measured", "new_tokens": 9, "cut_tokens": 0}
    rows = []
    for scheme, temperature in (("fp16", 0.0), ("fp16", 1.0), ("w8a8", 0.0)):
        tasks = (("spec-bench", "qa", 30, 2.0), ("spec-bench", "rag", 10, 4.0), ("gsm8k", "GSM8K", 20, 3.0))
        for benchmark, task, steps, length in tasks:
            for plan in PLANS:
                length += 0.01
                rate = 0.5 if plan.method == "vanilla" else float("nan")
                rows.append(
                    about
                    | {"scheme": scheme, "temperature": temperature, "benchmark": benchmark, "task": task}
                    | plan.__dict__
                    | {"questions": 5, "steps": steps, "accepted_length": length}
                    | {"accepted_length_low": length - 0.4, "accepted_length_high": length + 0.4}
                    | {"mean_draft_size": 7.0, "judged_tokens": 40 if rate == 0.5 else 0}
                    | {"acceptance_rate": rate, "acceptance_rate_low": rate - 0.1, "acceptance_rate_high": rate + 0.1}
                )
    return pd.DataFrame(rows)


def cells(table: pd.DataFrame) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown(table).splitlines()]


def test_the_table_is_of_the_largest_trees_greedily_in_fp16():
    lines = cells(by_task(acceptance()))
    assert [line[0] for line in lines] == ["task", "---", "qa", "rag", "GSM8K", "all of Spec-Bench"]
    assert lines[2] == ["qa", "5", "2.02 (1.62 to 2.42)", *lines[2][3:5], "50.0% (40.0 to 60.0)"]
    assert lines[2][3] == "2.03 (1.63 to 2.43)"
    whole, half = (30 * 2.02 + 10 * 4.02) / 40, ((0.75 * 0.4) ** 2 + (0.25 * 0.4) ** 2) ** 0.5
    assert lines[5][1:3] == ["10", f"{whole:.2f} ({whole - half:.2f} to {whole + half:.2f})"]


def test_what_is_sampled_and_other_schemes_have_tables_of_their_own():
    table = acceptance()
    lengths = ["accepted_length", "accepted_length_low", "accepted_length_high"]
    table.loc[table.temperature == 1, lengths] -= 0.5
    table.loc[table.scheme == "w8a8", lengths] += 0.5
    sampled, greedy, schemes = (
        cells(by_task(table, 1)),
        cells(by_task(table)),
        cells(by_scheme(table)),
    )
    assert sampled[2][:3] == ["qa", "5", "1.52 (1.12 to 1.92)"]
    assert sampled[0][-1] == "a token of vanilla's is accepted"
    assert [line[:2] for line in schemes[2:]] == [["FP16", "10"], ["W8A8", "10"]]
    assert schemes[2][2:] == greedy[-1][2:]
    assert float(schemes[3][2].split()[0]) == pytest.approx(float(schemes[2][2].split()[0]) + 0.5)
    whole, greedy_alone = told(table, Path("a.csv")), told(table.query("temperature == 0 and scheme == 'fp16'"), Path())
    assert whole.endswith(markdown(by_scheme(table)))
    assert markdown(by_task(table, 1)) in whole
    assert "sampled at temperature 1" not in greedy_alone
    assert greedy_alone.endswith(markdown(aims(table)))


def written(table: pd.DataFrame, folder: str) -> str:
    said = told(table, Path(folder) / "acceptance.csv")
    assert f"(`{folder}/acceptance.csv`):" in said
    assert markdown(by_task(table)) in said
    assert markdown(aims(table)) in said
    return f"\n\n{said}\n\n".join(MARKERS)


def test_aims_are_judged_on_spec_bench_with_their_intervals():
    table = acceptance()
    rows, whole = cells(aims(table)), cells(by_task(table))[-1]
    assert [row[1] for row in rows[2:]] == [whole[2], whole[5], f"{whole[4]} against {whole[3]}"]
    assert [row[2] for row in rows[2:]] == ["no", "no", "yes, by less than the intervals"]
    of_eagle2, of_vanilla = table.method == "eagle2", table.method == "vanilla"
    lengths = ["accepted_length", "accepted_length_low", "accepted_length_high"]
    rates = ["acceptance_rate", "acceptance_rate_low", "acceptance_rate_high"]
    table.loc[of_eagle2, lengths] += 1.0  # 3.52, and all of its interval above 3
    table.loc[of_vanilla, rates] += 0.16  # 66%, but not all of its interval
    table.loc[of_vanilla, lengths] += 1.0
    assert [line[2] for line in cells(aims(table))[2:]] == [
        "yes",
        "yes, by less than the intervals",
        "no",
    ]


def test_the_card_is_written_where_it_has_a_place_for_it(tmp_path):
    (tmp_path / "data/smollm2").mkdir(parents=True)
    assert write_drafters_card(tmp_path) == []  # nothing was recorded
    write_results(acceptance(), tmp_path / FOLDERS[1] / "acceptance.csv", {})
    begin, end = MARKERS
    for without_a_place in ("before\n", f"{begin}\nnotes\n{begin}\nold\n{end}\n"):  # whose notes would be lost
        (tmp_path / CARD).write_text(without_a_place)
        with pytest.raises(SpecquantError, match="lacks the lines"):
            write_drafters_card(tmp_path)
        assert (tmp_path / CARD).read_text() == without_a_place
    (tmp_path / CARD).write_text("before\n" + "\nold\n".join(MARKERS) + "\nafter\n")
    assert write_drafters_card(tmp_path) == [tmp_path / CARD]
    expected = f"before\n{written(acceptance(), FOLDERS[1])}\nafter\n"
    assert (tmp_path / CARD).read_text() == expected


def test_what_a_gpu_recorded_comes_first(tmp_path, capsys):
    (tmp_path / "data/smollm2").mkdir(parents=True)
    (tmp_path / CARD).write_text("".join(MARKERS) + "\n")
    more = acceptance().assign(questions=80)
    for folder, table in zip(FOLDERS, (more, acceptance()), strict=True):
        write_results(table, tmp_path / folder / "acceptance.csv", {})
    for name in ("acceptance", "traces"):  # a GPU recorded but one of them, and they belong together
        assert recorded_table(name, tmp_path) == f"{FOLDERS[1]}/{name}.csv"
        assert f"{FOLDERS[1]} is read" in capsys.readouterr().err
    (tmp_path / FOLDERS[0] / "traces.csv").touch()
    assert recorded_table("traces", tmp_path) == f"{FOLDERS[0]}/traces.csv"
    assert capsys.readouterr().err == ""
    assert write_drafters_card(tmp_path)
    assert (tmp_path / CARD).read_text() == f"{written(more, FOLDERS[0])}\n"


def test_the_card_says_what_is_recorded():
    recorded = Path(recorded_table("acceptance"))
    table = pd.read_csv(project_root() / recorded)
    assert written(table, recorded.parent.as_posix()) in (project_root() / CARD).read_text()
