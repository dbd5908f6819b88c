import json

import pytest

from specquant.errors import SpecquantError
from specquant.training.corpora import (
    Document,
    clean_wikitext,
    code_documents,
    load_corpora,
    mathematics_documents,
    shakespeare_documents,
    wikitext_documents,
)


def test_the_split_is_a_function_of_the_name_alone():
    names = [f"package/module_{i}.py" for i in range(4000)]
    held_out = {name for name in names if Document("code", name, "x").held_out}
    assert held_out == {name for name in reversed(names) if Document("code", name, "another text").held_out}
    assert 0.035 < len(held_out) / len(names) < 0.065


def test_the_split_is_the_same_on_every_machine():
    names = ["json/encoder.py", "json/decoder.py", "dis.py", "ftplib.py", "this.py", "timeit.py"]
    held_out = [name for name in names if Document("code", name, "").held_out]
    assert held_out == ["json/encoder.py", "dis.py", "ftplib.py", "timeit.py"]


def test_mathematics_loses_the_calculator_notes():
    line = {"question": " How many? ", "answer": "She sold 48/2 = <<48/2=24>>24 clips, $<<24*0.5=12>>12.\n#### 12"}
    [document] = mathematics_documents(json.dumps(line))
    assert document.text == "Question: How many?\nAnswer: She sold 48/2 = 24 clips, $12.\n#### 12\n"
    assert document.name == "How many?"


@pytest.mark.parametrize("line", ["not json", '{"question": "a"}', '["a"]', '{"question": 1, "answer": "b"}'])
def test_a_broken_line_of_mathematics_is_named(line):
    with pytest.raises(SpecquantError, match=r"gsm8k_train\.jsonl, line 2"):
        mathematics_documents('{"question": "a", "answer": "b"}\n' + line)


def test_code_skips_tests_tables_and_other_encodings(tmp_path):
    files = {
        "json/decoder.py": b"x = 1\f\n\n\ty = 2\n",
        "json/tests/test_decoder.py": b"x = 1\n",
        "test/test_json.py": b"x = 1\n",
        "site-packages/numpy/core.py": b"x = 1\n",
        "encodings/cp437.py": b"x = 1\n",
        "_sysconfigdata__linux.py": b"x = 1\n",
        "latin.py": b"# caf\xe9\n",
        "empty.py": b"\n",
        "notes.txt": b"x\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    [document] = code_documents(tmp_path)
    assert (document.name, document.text) == ("json/decoder.py", "x = 1\n\n        y = 2\n")


@pytest.mark.parametrize(
    ("tokens", "prose"),
    [
        (" It weighs 0 @.@ 7 kg ( 1 @.@ 5 lb ) . ", "It weighs 0.7 kg (1.5 lb)."),
        (
            " 1 @,@ 000 well @-@ known people , it 's said ; they don 't . ",
            "1,000 well-known people, it's said; they don't.",
        ),
        (' only becoming " lobster red " on cooking . ', 'only becoming "lobster red" on cooking.'),
        (" The claw ( <unk> ) is sharp . The <unk> of <unk> is not . It ends . ", "The claw is sharp. It ends."),
        (" = = Description = = \n \n The end . ", "Description\n\nThe end."),
    ],
)
def test_wikitext_becomes_prose(tokens, prose):
    assert clean_wikitext(tokens) == prose


def test_wikitext_splits_at_articles_not_at_sections():
    text = " \n = One = \n \n First . \n \n = = Part = = \n \n More . \n \n = Two <unk> = \n \n Second . \n"
    documents = wikitext_documents(text)
    assert [document.name for document in documents] == ["wikitext/One", "wikitext/Two <unk>"]
    assert [document.text for document in documents] == ["One\n\nFirst.\n\nPart\n\nMore.\n", "Two\n\nSecond.\n"]


def test_shakespeare_sections_are_contiguous_and_complete():
    speeches = [f"Speaker {i}:\n" + "word " * 200 for i in range(100)]
    documents = shakespeare_documents("\n\n".join(speeches))
    assert len(documents) > 4
    assert "\n\n".join(document.text[:-1] for document in documents) == "\n\n".join(speeches).strip()


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(SpecquantError, match=r"cannot read the corpus .*gsm8k_train\.jsonl"):
        load_corpora(tmp_path)
