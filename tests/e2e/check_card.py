#!/usr/bin/env python3
"""Loads a model card with huggingface_hub and compares what it understood with the numbers in the stored results.

Usage: check_card.py README.md
"""
import json
import pathlib
import sys
import urllib.parse

from huggingface_hub import EvalResult, ModelCard


def stored_value(folder, url):
    """The value that a link of the card points to."""
    file, pointer = url.split("#", 1)
    value = json.loads((folder / urllib.parse.unquote(file)).read_text())
    for part in urllib.parse.unquote(pointer).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def main():
    path = pathlib.Path(sys.argv[1])
    data = ModelCard.load(path).data
    for field in ("license", "base_model", "tags", "library_name", "pipeline_tag", "model_name"):
        assert getattr(data, field), f"the card has no {field}"
    assert data.eval_results, "the card has no results"
    for result in data.eval_results:
        assert isinstance(result, EvalResult)
        assert result.task_type and result.dataset_type and result.dataset_name and result.metric_type
        assert abs(result.metric_value - stored_value(path.parent, result.source_url)) <= 1e-9 * abs(result.metric_value)
    print(f"{len(data.eval_results)} results")


main()
