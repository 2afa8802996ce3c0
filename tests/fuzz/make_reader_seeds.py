#!/usr/bin/env python3
"""Writes the seed corpus of the readers' fuzz target into tests/fuzz/seeds-readers: the first byte of a file says which
reader gets the rest (readers_fuzz.cpp).

    tests/fuzz/make_reader_seeds.py     writes them (they are in the repository; this says how they came to be)
"""

import json
import pathlib
import sqlite3
import struct
import tempfile

RECIPE, JSON, CBOR, TEXT, JOURNAL, TABLE, ABLATION, NAMES, QUESTIONS, REPLY, WORDS, STATEMENT = range(12)


def cbor(value):
    """As much of RFC 8949 as the stored text needs."""
    def head(kind, n):
        if n < 24:
            return bytes([kind << 5 | n])
        return bytes([kind << 5 | 24, n]) if n < 256 else bytes([kind << 5 | 25]) + struct.pack(">H", n)
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(cbor, value))
    return head(5, len(value)) + b"".join(cbor(key) + cbor(item) for key, item in value.items())


def doubles(*values):
    return struct.pack(f"<{len(values)}d", *values)


def journal():
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "journal.db"
        with sqlite3.connect(path) as database:
            database.executescript("""
                PRAGMA page_size = 512; PRAGMA application_id = 0x43424c4d; PRAGMA user_version = 1;
                CREATE TABLE identity (field TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
                CREATE TABLE measurement (tensor TEXT NOT NULL, type TEXT NOT NULL,
                    tier TEXT NOT NULL CHECK (tier IN ('fast', 'full')), counts BLOB NOT NULL, kld BLOB NOT NULL,
                    delta_nll BLOB NOT NULL, top1_agree BLOB NOT NULL, local_energy BLOB NOT NULL,
                    local_counts BLOB NOT NULL, wall_s REAL NOT NULL, PRIMARY KEY (tensor, type, tier));
                CREATE TABLE artifact (name TEXT PRIMARY KEY, bytes BLOB NOT NULL);
                CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
                CREATE TABLE mix (id INTEGER PRIMARY KEY, part TEXT NOT NULL, types TEXT NOT NULL, kind TEXT NOT NULL,
                    counts BLOB NOT NULL, kld BLOB NOT NULL, nll BLOB NOT NULL, reference_nll BLOB NOT NULL,
                    top1_agree BLOB NOT NULL, wall_s REAL NOT NULL, UNIQUE (part, types));
                INSERT INTO identity VALUES ('model', 'abc'), ('measuring', '7');
                INSERT INTO meta VALUES ('imatrix_name', 'a');
            """)
            two = doubles(2, 3)
            database.execute("INSERT INTO measurement VALUES ('blk.0.attn_q.weight', 'q4_K', 'full', ?, ?, ?, ?, x'', x'', 1)",
                             (two, doubles(0.1, 0.2), doubles(0, 0.1), doubles(1, 2)))
            database.execute("INSERT INTO mix VALUES (1, 'measured', 'blk.0.attn_q.weight=q4_K\n', 'recipe', ?, ?, ?, ?, ?, 1)",
                             (two, doubles(0.1, 0.2), two, two, doubles(1, 2)))
            tensors = [{"name": "blk.0.attn_q.weight", "type": "f16", "shape": [32, 2, 1, 1], "dimensions": 2, "bytes": 128}]
            database.execute("INSERT INTO artifact VALUES ('tensors', ?)", (json.dumps(tensors).encode(),))
            entries = {"blk.0.attn_q.weight": [[1, 2], [1], 2]}
            matrix = {"entries": entries, "datasets": ["a"], "chunk_count": 1, "chunk_size": 8}
            database.execute("INSERT INTO artifact VALUES ('imatrix', ?)", (cbor(matrix),))
        database.close()
        return path.read_bytes()


def seeds():
    recipe = {"format": "cerebellum-recipe", "version": 1, "source": {"name": "m.gguf", "fingerprint": "ab"},
              "file_bytes": 10, "predicted_kld": 0.1, "types": {"blk.0.attn_q.weight": "q4_K", "a": "iq2_xs"},
              "provenance": {"imatrix": "i.gguf"}}
    yield "recipe", RECIPE, json.dumps(recipe)
    yield "json", JSON, '{"a": [1, -2.5e3, "x\\u00e9", null, {"b": [[]]}], "c": true}'
    yield "cbor", CBOR, cbor({"a": [1, -2, "b", [300, {}]]})
    window = [1, 2, 3, 4, 5, 6, 7, 8]
    yield "text", TEXT, cbor({"calibration": [window, window], "selection": [window], "test": [window], "description": "d",
                              "domains": [["a", "b"], ["a"], ["b"]]})
    yield "journal", JOURNAL, journal()
    yield "table", TABLE, "QTYPE,blk.0.attn_q.weight,output.weight\nq4_K,0.01%,0.02%\nq2_K,1.5%,404\n"
    yield "ablation", ABLATION, json.dumps({"model": {"model": "m", "fingerprint": "ab"}, "baseline": {"ppl": 5.0}, "results": [
        {"tensor": "blk.0.attn_q.weight", "ppl": 5.1, "kld": 0.01}]})
    yield "names", NAMES, "\ufeff# a remark\nblk.0.attn_q.weight\nblk.*.ffn_down.weight=q4_K\n"
    yield "questions-jsonl", QUESTIONS, json.dumps({"question": "Why?", "choices": ["a", "b", "c", "d"], "answer": 1, "subject": "s"}) + "\n"
    yield "questions-csv", QUESTIONS, 'Why?,"a, b",c,d,e,B\n'
    yield "questions-winogrande", QUESTIONS, "0,The trophy is larger than the _ here,suitcase,trophy,1\n"
    yield "questions-hellaswag", QUESTIONS, "A man sits\n1\none\ntwo\nthree\nfour\n"
    yield "questions-arc", QUESTIONS, json.dumps({"id": "1", "question": {"stem": "Why?", "choices": [
        {"text": "a", "label": "A"}, {"text": "b", "label": "B"}]}, "answerKey": "B"}) + "\n"
    yield "reply", REPLY, "<think>London?</think> The answer is **B**) London.\n```python\ndef f(x):\n    return x\n```\n"
    yield "python-list", REPLY, "['a', \"b's\", 'c\\n']"
    yield "words", WORDS, "http://user@host:8080/v1 \u202e\x1b[31m it's \u4f60\u597d"
    digest = "0" * 64
    yield "statement", STATEMENT, json.dumps({
        "_type": "https://in-toto.io/Statement/v1", "subject": [{"name": "a.gguf", "digest": {"sha256": digest}}],
        "predicateType": "urn:cerebellum:derivation:1",
        "predicate": {"made_by": "x", "files": [{"role": "recipe", "name": "a.derivation.json", "digest": {"sha256": digest}}]}})


def main():
    folder = pathlib.Path(__file__).resolve().parent / "seeds-readers"
    folder.mkdir(exist_ok=True)
    for name, reader, content in seeds():
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(bytes([reader]) + data)


if __name__ == "__main__":
    main()
