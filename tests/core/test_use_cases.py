"""Every documented spelling of a use case resolves, misspelt ones are suggested, others are custom."""

from __future__ import annotations

import pytest
from sparsify.errors import MissingLibraryError, RequestError
from sparsify.plugins import load_plugins
from sparsify.use_cases import edit_distance, known_use_cases, resolve_use_case, spellings

PLUGINS = load_plugins()
KNOWN = known_use_cases()

DOCUMENTED = {
    "cv-classification": "image-classification",
    "image-classification": "image-classification",
    "image_classification": "image-classification",
    "Image Classification": "image-classification",
    "IC": "image-classification",
    "classification": "image-classification",
    "cv-detection": "object-detection",
    "object_detection": "object-detection",
    "od": "object-detection",
    "yolo": "object-detection",
    "cv-segmentation": "segmentation",
    "image_segmentation": "segmentation",
    "nlp-question_answering": "question-answering",
    "question_answering": "question-answering",
    "qa": "question-answering",
    "nlp-text_classification": "text-classification",
    "glue": "text-classification",
    "nlp-sentiment_analysis": "sentiment-analysis",
    "sentiment": "sentiment-analysis",
    "nlp-token_classification": "token-classification",
    "nlp-named_entity_recognition": "token-classification",
    "named_entity_recognition": "token-classification",
    "ner": "token-classification",
    "mlm": "masked-language-modeling",
    "masked_language_modeling": "masked-language-modeling",
    "ir": "information-retrieval",
    "nlp_information_retrieval": "information-retrieval",
    "document_classification": "document-classification",
    "nlp_document_classification": "document-classification",
    "multilabel_text_classification": "multilabel-text-classification",
    "finetuning": "finetune",
    "fine tune": "finetune",
}


@pytest.mark.parametrize(("spelling", "canonical"), DOCUMENTED.items())
def test_documented_spellings_resolve(spelling: str, canonical: str) -> None:
    installed = {offer.entry.name for offer in PLUGINS.offers("use_cases")}
    if canonical in installed:
        assert resolve_use_case(spelling, PLUGINS, "one-shot").name == canonical
    elif KNOWN[canonical].distribution:
        with pytest.raises(MissingLibraryError) as caught:
            resolve_use_case(spelling, PLUGINS, "one-shot")
        assert (
            caught.value.problem == f"use case '{canonical}' needs {KNOWN[canonical].distribution}, not installed here"
        )
        assert caught.value.fix.startswith(f"pip install {KNOWN[canonical].distribution};")
    else:
        with pytest.raises(RequestError, match="LLM fine-tuning, which Sparsify does not do"):
            resolve_use_case(spelling, PLUGINS, "one-shot")


def test_no_spelling_means_two_use_cases() -> None:
    every = [(spelling, name) for name, known in KNOWN.items() for spelling in (name, *known.aliases)]
    table = spellings(PLUGINS)
    for spelling, name in every:
        assert table[spelling.lower().replace("-", "").replace("_", "").replace(" ", "")] == name


@pytest.mark.parametrize("misspelt", ["image-clasification", "imageclassifcation", "cv-clasification"])
def test_a_near_miss_is_an_error_with_the_suggestion(misspelt: str) -> None:
    with pytest.raises(RequestError) as caught:
        resolve_use_case(misspelt, PLUGINS, "one-shot")
    assert caught.value.lines() == (
        f"error: there is no use case '{misspelt}'\n"
        f"fix: did you mean 'image-classification'? Else use custom:{misspelt}"
    )


@pytest.mark.parametrize("name", ["weld-inspection", "custom:weld-inspection", "CUSTOM:weld-inspection"])
def test_any_other_name_is_a_custom_use_case(name: str) -> None:
    assert resolve_use_case(name, PLUGINS, "one-shot").name == "custom:weld-inspection"


def test_custom_may_reuse_a_known_name() -> None:
    assert resolve_use_case("custom:ner", PLUGINS, "one-shot").name == "custom:ner"


def test_custom_is_for_one_shot_only() -> None:
    with pytest.raises(
        RequestError, match="'weld' is a custom use case, and training-aware has no training loop for it"
    ):
        resolve_use_case("weld", PLUGINS, "training-aware")


@pytest.mark.parametrize(("name", "why"), [("", "--use-case is empty"), ("custom: ", "custom: needs a name")])
def test_an_empty_name_is_refused(name: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        resolve_use_case(name, PLUGINS, "one-shot")


@pytest.mark.parametrize(("left", "right", "edits"), [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0)])
def test_edit_distance(left: str, right: str, edits: int) -> None:
    assert edit_distance(left, right) == edits == edit_distance(right, left)
