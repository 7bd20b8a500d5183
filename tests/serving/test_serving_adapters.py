"""A bundle with adapters behind the API: several models by name over one package, which take turns."""

import urllib.request
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from serving_models import reading_model, served


def test_each_adapter_is_a_model_of_its_own(tmp_path: Path) -> None:
    for name in ("alone", "style"):
        (tmp_path / name).mkdir()
    alone, _ = reading_model(tmp_path / "alone", "as ever")
    style = replace(reading_model(tmp_path / "style", "in style")[0], adapter="style", first=alone)
    with served({"tiny": alone, "tiny:style": style}) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny", "tiny:style"]
        for name, said in (("tiny", "as ever"), ("tiny:style", "in style"), ("tiny", "as ever")):
            reply = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hello"}])
            assert (reply.model, reply.choices[0].message.content) == (name, said)
        with pytest.raises(openai.NotFoundError, match="there is no model tiny:terse: tiny, tiny:style") as refused:
            client.chat.completions.create(model="tiny:terse", messages=[{"role": "user", "content": "Hello"}])
        assert refused.value.code == "model_not_found"
        with urllib.request.urlopen(f"{url}/metrics") as response:
            metrics = response.read().decode()
    assert 'recipe_answers_total{model="tiny:style",outcome="stop"} 1.0' in metrics
    # one queue before the one package
    assert 'recipe_requests_waiting{model="tiny"}' in metrics
    assert 'recipe_requests_waiting{model="tiny:style"}' not in metrics
