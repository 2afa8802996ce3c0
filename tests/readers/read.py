"""Prints, as JSON, what PyPI's gguf package reads in a file: tensors (name, type, shape, bytes) and metadata.

python read.py FILE.gguf
"""

import json
import sys

import gguf


def plain(field):
    value = field.contents()
    return value.item() if hasattr(value, "item") else value


def main():
    reader = gguf.GGUFReader(sys.argv[1])
    json.dump({
        "tensors": [{"name": tensor.name, "type": tensor.tensor_type.name.lower(), "bytes": int(tensor.n_bytes),
                     "shape": [int(size) for size in tensor.shape]} for tensor in reader.tensors],
        "metadata": {name: plain(field) for name, field in reader.fields.items() if not name.startswith("GGUF.")},
    }, sys.stdout)


if __name__ == "__main__":
    main()
