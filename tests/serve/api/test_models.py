"""What is served, by which names."""

from .scripted import USER, Scripted, error_of


def test_every_listed_model_answers_by_its_id(serving):
    live = serving(Scripted(name="sprout"), Scripted(name="org/树苗"))
    listed = live.http.get("/v1/models").json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["sprout", "org/树苗"]
    for model in listed["data"]:
        assert model["object"] == "model" and type(model["created"]) is int and model["owned_by"] == "mengya"
        assert live.http.get(f"/v1/models/{model['id']}").json() == model
        assert live.chat(model=model["id"]).json()["model"] == model["id"]


def test_unknown_models_are_told_what_there_is(serving):
    live = serving(Scripted(name="sprout"), Scripted(name="tree"))
    answers = [live.chat(model="gpt-4"), live.complete(model="gpt-4"), live.http.get("/v1/models/gpt-4")]
    answers += [live.chat(model="gpt-4", stream=True), live.post("/v1/embeddings", {"model": "gpt-4", "input": "a"})]
    for answer in answers:
        error = error_of(answer)
        assert answer.status_code == 404 and error["code"] == "model_not_found" and error["param"] == "model"
        assert "gpt-4" in error["message"] and "sprout, tree" in error["message"]


def test_any_name_will_do_if_it_is_let(serving):
    live = serving(any_name=True)
    answer = live.post("/v1/chat/completions", {"model": "gpt-4", "messages": USER})
    assert answer.json()["model"] == "sprout"  # the served one, not what was asked for


def test_health(plain):
    assert plain.http.get("/health").json() == {"status": "ok"}
