"""The control tokens of a checkpoint's encoder that come through from texts with their names, by text.

Runs in the quality environment: control_tokens.py FOLDER.
"""

import json
import os
import sys

from comet import load_from_checkpoint

from routelmt_batch.metrics.comet import Checkpoint


def main(folder: str) -> dict:
    file = f"{folder}/checkpoints/model.ckpt"
    model = Checkpoint(file, "kiwi", "unified_metric", ("mt", "src"), "").load()
    os.chdir(folder)  # the encoder is named relative to it
    theirs = load_from_checkpoint(file).encoder.tokenizer
    names = theirs.all_special_tokens
    texts = [form.format(name) for name in names for form in ("{}", "A {} cat", "A{}")]

    def control(text: str) -> list:
        ids = model.encoder.prepare_sample([text])["input_ids"][0].tolist()
        return [id_ for id_ in ids if id_ in theirs.all_special_ids and id_ != theirs.unk_token_id]

    plain = model.encoder.prepare_sample(["I saw a cat."])["input_ids"][0].tolist()
    assert plain == theirs(["I saw a cat."])["input_ids"][0]
    around = [theirs.bos_token_id, theirs.eos_token_id]
    return {"texts": len(texts), "through": [text for text in texts if control(text) != around]}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
