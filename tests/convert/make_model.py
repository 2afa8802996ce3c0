"""Makes a small model with the transformers package, and the logits that it gives, for tests/e2e/convert_test.cpp.

python make_model.py FOLDER TEXT: the model goes to FOLDER, with a SentencePiece tokenizer that is trained on the file TEXT;
FOLDER/logits.json holds a text, its tokens (BOS first) and the logits at all positions.
"""

import json
import pathlib
import sys

import sentencepiece
import torch
import transformers


def main():
    folder, text = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=512, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2)
    tokenizer = transformers.LlamaTokenizer(vocab_file=str(folder / "tokenizer.model"), legacy=False)
    tokenizer.save_pretrained(folder)

    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rope_theta=50000.0, tie_word_embeddings=False,
        initializer_range=0.2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        torch_dtype=torch.float32)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    model.save_pretrained(folder, safe_serialization=True)

    words = "Licensed works and their conditions"
    tokens = tokenizer(words)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    (folder / "logits.json").write_text(json.dumps(
        {"text": words, "tokens": tokens, "logits": logits.flatten().tolist()}))


if __name__ == "__main__":
    main()
