"""Conversations longer than a row: every answer is learnt once, and has the end of its prompt before it."""

import random

import pytest

from mengya.data.fitting import Rendered, exchanges, fit_conversation, windows
from mengya.data.preferences import Preference
from mengya.data.readers import Row
from mengya.data.rendering import conversation_example, preference_example
from mengya.errors import UserError
from mengya.text.chat import Chat
from mengya.text.tokenizer import train_tokenizer

SYSTEM = {"role": "system", "content": "守则"}


@pytest.fixture(scope="module")
def chat():
    return Chat(train_tokenizer(["从前有一座山，山里有一座庙。", "once upon a time"] * 20, 280, 6), "chatml")


def user(text):
    return {"role": "user", "content": text}


def bot(text, **more):
    return {"role": "assistant", "content": text, **more}


def said(chat, piece):
    """The text of a piece, and what of it is learnt."""
    return chat.tokenizer.decode(piece.ids), chat.tokenizer.decode(learnt_ids(piece))


def learnt_ids(piece):
    return [i for i, m in zip(piece.ids, piece.mask, strict=True) if m]


def test_what_fits_is_one_document(chat):
    talk = [SYSTEM, user("问"), bot("答")]
    size = len(chat.encode(talk)[0])
    assert fit_conversation(chat, talk, size - 1) == ([Rendered(*chat.encode(talk))], False)
    assert fit_conversation(chat, talk, size - 2)[1]


def test_a_long_conversation_is_cut_at_turns_each_time_after_the_system_message(chat):
    talk = [SYSTEM]
    for number in range(12):
        talk += [user(f"问题{number}"), bot(f"回答{number}")]
    pieces, cut = fit_conversation(chat, talk, 150)
    assert cut and 1 < len(pieces) < 12
    learnt = []
    for piece in pieces:
        assert len(piece.ids) <= 151
        whole, answers = said(chat, piece)
        assert whole.startswith("system\n守则")
        for number in range(12):
            assert (f"问题{number}\n" in whole) == (f"回答{number}\n" in whole)
        learnt.append(answers)
    assert "".join(learnt) == "".join(message["content"] for message in talk if message["role"] == "assistant")


def test_an_answer_keeps_the_end_of_its_prompt(chat):
    talk = [user("从前" * 200 + "最后的问题是什么？"), bot("是庙。")]
    ((piece,), cut) = fit_conversation(chat, talk, 100)
    whole, learnt = said(chat, piece)
    assert cut and len(piece.ids) == 101
    assert "最后的问题是什么？" in whole and learnt == "是庙。"


def test_an_answer_longer_than_a_row_goes_on_in_the_next_one(chat):
    answer = "".join(f"第{number}座山里有庙。" for number in range(60))
    pieces, _ = fit_conversation(chat, [user("有几座山？"), bot(answer)], 120)
    assert "有几座山？" in said(chat, pieces[0])[0]
    assert chat.tokenizer.decode([i for piece in pieces for i in learnt_ids(piece)]) == answer
    for piece in pieces:
        assert piece.mask.index(1) >= 120 // 4 or piece is pieces[0]


def test_any_mask_is_learnt_once_with_something_before_it():
    noise = random.Random(0)
    for _ in range(300):
        size, seq_len = noise.randrange(2, 200), noise.randrange(4, 60)
        mask = [0]
        while len(mask) < size:
            mask += [noise.randrange(2)] * noise.randrange(1, 40)
        rendered = Rendered(list(range(size)), mask[:size])
        learnt = []
        for piece in windows(rendered, seq_len):
            assert len(piece.ids) == len(piece.mask) <= seq_len + 1
            assert piece.ids == list(range(piece.ids[0], piece.ids[-1] + 1))
            learnt += [i for i, m in zip(*piece, strict=True) if m]
            if len(rendered.ids) > seq_len + 1:
                assert piece.mask[0] == 0
        assert learnt == [i for i, m in enumerate(rendered.mask) if m]


def test_only_the_last_turn_is_learnt_if_so_wanted(chat):
    talk = [user("一"), bot("甲"), user("二"), bot("乙")]
    example = conversation_example(chat, Row("a", 1, talk), seq_len=200, supervise="last")
    (piece,) = example.documents
    assert said(chat, piece)[1] == "乙"
    assert piece.ids == chat.encode(talk)[0]
    with pytest.raises(UserError, match="no turn is supervised"):
        wrong = [user("一"), bot("甲"), user("二"), bot("乙", supervised=False)]
        conversation_example(chat, Row("a", 1, wrong), seq_len=200, supervise="last")


def test_a_turn_that_is_not_to_be_learnt_is_context(chat):
    talk = [user("一加一"), bot("等于三", supervised=False), user("不对吧"), bot("等于二")]
    ids, mask = chat.encode(talk)
    assert ids == chat.encode([{k: v for k, v in m.items() if k != "supervised"} for m in talk])[0]
    assert said(chat, Rendered(ids, mask))[1] == "等于二"


def test_pairs_lose_their_oldest_turns_and_keep_the_system_message(chat):
    prompt = [SYSTEM]
    for number in range(9):
        prompt += [user(f"问{number}"), bot(f"答{number}")]
    pair = Preference([*prompt, user("最后？")], "好山", "坏庙")
    example = preference_example(chat, Row("a", 1, pair), seq_len=200)
    assert example.cut and sum(len(ids) for ids, _ in example.documents) <= 200
    for document, answer in zip(example.documents, ("好山", "坏庙"), strict=True):
        whole, learnt = said(chat, document)
        assert whole.startswith("system\n守则") and "最后？" in whole and "问0" not in whole
        assert learnt == answer


def test_exchanges_begin_with_a_question():
    talk = [SYSTEM, user("一"), bot("甲"), {"role": "tool", "content": "晴"}, bot("乙"), user("二"), bot("丙")]
    system, groups = exchanges(talk)
    assert system == [SYSTEM] and groups == [talk[1:5], talk[5:]]
