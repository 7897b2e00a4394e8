"""A packed step as rank 0 tells it to the others: one row of 64-bit integers, no pickle.

tokens, requests, logit rows, decodes │ input_ids, position_ids, slot_mapping │ logit_rows
│ query_lens, cache_seqlens, blocks of each request │ all block tables, one after the other
"""

from itertools import chain

import numpy as np
import torch

from services.engine.attention.interface import AttentionBatch
from services.engine.packing import PackedStep

_HEADER = 4


def encode_step(step: PackedStep) -> bytes:
    """The message for a step on CPU; which rows are sampled is rank 0's business alone."""
    batch = step.attention
    tensors = (step.input_ids[0], step.position_ids[0], batch.slot_mapping, step.logit_rows)
    tables = batch.block_table
    numbers = [*batch.query_lens, *batch.cache_seqlens, *map(len, tables), *chain.from_iterable(tables)]
    header = [step.input_ids.shape[1], len(tables), step.logit_rows.shape[0], batch.num_decodes]
    rows = [
        np.array(header, dtype=np.int64),
        *(tensor.numpy() for tensor in tensors),
        np.array(numbers, dtype=np.int64),
    ]
    return np.concatenate(rows).tobytes()


def decode_step(message: bytes) -> PackedStep:
    """The step of a message.

    Raises:
        ValueError: it is none.
    """
    values = np.frombuffer(message, dtype=np.int64).copy()  # torch wants memory that can be written
    tokens, requests, logit_rows, num_decodes = values[:_HEADER].tolist()
    sizes = [tokens, tokens, tokens, logit_rows, requests, requests, requests]
    ends = np.cumsum([_HEADER, *sizes])
    parts = np.split(values, ends)[1:]
    input_ids, position_ids, slot_mapping, rows = (torch.from_numpy(part) for part in parts[:4])
    query_lens, cache_seqlens, table_lens = (part.tolist() for part in parts[4:7])
    tables = np.split(parts[7], np.cumsum(table_lens))
    if len(tables) != requests + 1 or tables[-1].size:
        raise ValueError(f"a step of {len(message)} bytes does not hold {requests} block tables")
    batch = AttentionBatch(
        num_decodes=num_decodes,
        query_lens=tuple(query_lens),
        cache_seqlens=tuple(cache_seqlens),
        block_table=tuple(tuple(table.tolist()) for table in tables[:-1]),
        slot_mapping=slot_mapping,
    )
    return PackedStep(input_ids[None], position_ids[None], batch, rows, ())
