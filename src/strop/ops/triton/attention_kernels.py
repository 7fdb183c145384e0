"""The kernels of `ops.triton.attention`.

A tile of queries belongs to one node. Its keys are the tokens on the node's path: first the ancestors', gathered with
an index list, then the node's own. The recurrences are FlashAttention-2's (Dao 2023, arXiv 2307.08691), in base 2. A
head width that is not a power of two is computed in two parts, such as 96 = 64 + 32.
"""

import triton
import triton.language as tl

from strop.ops.triton.thin import add_low_rank, add_thin_product, rows_of, store_parts


@triton.jit
def _tile(x, token, real, row_stride, H: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Load channels FIRST to FIRST + WIDTH of some tokens of one head."""
    channel = FIRST + tl.arange(0, WIDTH)
    return tl.load(x + token[:, None] * row_stride + channel[None, :], real[:, None] & (channel < H)[None, :], 0.0)


@triton.jit
def _store(x, token, real, row_stride, value, H: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    channel = FIRST + tl.arange(0, WIDTH)
    tl.store(x + token[:, None] * row_stride + channel[None, :], value, real[:, None] & (channel < H)[None, :])


@triton.jit
def _query_tile(queries):
    """This program's tile: first query, number of queries, positions and ancestors before it, offset of its path."""
    tile = queries + tl.program_id(0) * 5
    first, count, before = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    return first, count, before, tl.load(tile + 4), tl.load(tile + 3)


@triton.jit
def _path_tokens(path, j, high, before, first, TREE: tl.constexpr):
    """The token at place j of a node's path, which has `high` tokens, the first `before` of them its ancestors'."""
    token = first + j - before
    if TREE:
        token = tl.where(j < before, tl.load(path + j, j < before, 0), token)
    return tl.where(j < high, token, 0).to(tl.int64)


@triton.jit
def forward(
    q, k, v, out, lse, thin, largest_parts, product_parts, queries, path, row_stride, out_stride, total, scale, window,
    GROUPS: tl.constexpr, H: tl.constexpr, H1: tl.constexpr, H2: tl.constexpr, R: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WINDOWED: tl.constexpr, TREE: tl.constexpr,
):  # fmt: skip
    """For a tile of queries: the output, measured, and the log2 of the sums of weights."""
    first, count, before, ancestors, offset = _query_tile(queries)
    head = tl.program_id(1).to(tl.int64)
    if count > 0:
        node = first - (before - ancestors)  # the first token of the queries' node
        row = tl.arange(0, QUERIES)
        query, real = (first + row).to(tl.int64), row < count
        q += head * H
        k += (head // GROUPS) * H
        v += (head // GROUPS) * H
        q1 = _tile(q, query, real, row_stride, H, 0, H1)
        o1 = tl.zeros([QUERIES, H1], tl.float32)
        if H2 > 0:
            q2 = _tile(q, query, real, row_stride, H, H1, H2)
            o2 = tl.zeros([QUERIES, H2], tl.float32)
        largest, norm = tl.full([QUERIES], -1e30, tl.float32), tl.zeros([QUERIES], tl.float32)
        low, high = 0, before + count
        if WINDOWED:
            low = tl.maximum(0, (before - window + 1) // KEYS * KEYS)
        for start in range(low, high, KEYS):
            j = start + tl.arange(0, KEYS)
            token = _path_tokens(path + offset, j, high, ancestors, node, TREE)
            seen = j < high
            scores = tl.dot(q1, tl.trans(_tile(k, token, seen, row_stride, H, 0, H1)), input_precision="ieee")
            if H2 > 0:
                k2 = _tile(k, token, seen, row_stride, H, H1, H2)
                scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee")
            scores *= scale
            if WINDOWED:
                scores = tl.where(j[None, :] > (before + row - window)[:, None], scores, -float("inf"))
            if start + KEYS > before:  # otherwise every query of the tile sees all these keys
                scores = tl.where(j[None, :] <= (before + row)[:, None], scores, -float("inf"))
            new_largest = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp2(scores - new_largest[:, None])
            shrink = tl.exp2(largest - new_largest)
            norm = norm * shrink + tl.sum(weights, 1)
            largest = new_largest
            v1 = _tile(v, token, seen, row_stride, H, 0, H1)
            weights = weights.to(v1.dtype)
            o1 = tl.dot(weights, v1, o1 * shrink[:, None], input_precision="ieee")
            if H2 > 0:
                v2 = _tile(v, token, seen, row_stride, H, H1, H2)
                o2 = tl.dot(weights, v2, o2 * shrink[:, None], input_precision="ieee")
        out += head * H
        thin += head * H * R
        o1 = (o1 / norm[:, None]).to(q1.dtype)
        _store(out, query, real, out_stride, o1, H, 0, H1)
        biggest = tl.max(tl.abs(o1.to(tl.float32)), 1)
        product = tl.zeros([QUERIES, R], tl.float32)
        product = add_thin_product(product, o1, thin, tl.arange(0, H1), H, R)
        if H2 > 0:
            o2 = (o2 / norm[:, None]).to(q1.dtype)
            _store(out, query, real, out_stride, o2, H, H1, H2)
            biggest = tl.maximum(biggest, tl.max(tl.abs(o2.to(tl.float32)), 1))
            product = add_thin_product(product, o2, thin, H1 + tl.arange(0, H2), H, R)
        store_parts(largest_parts, product_parts, query, real, total, biggest, product, R)
        tl.store(lse + head * total + query, largest + tl.log2(norm), real)


@triton.jit
def finish_grad(
    grad, h, thin, out, delta, rows, H: tl.constexpr, HP: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Add the low-rank term to the output's gradient, in place, and compute each head's delta = sum(grad out)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head, heads = tl.program_id(1), tl.num_programs(1)
    real = row < rows
    channel = tl.arange(0, HP)
    place = row[:, None] * heads * H + head * H + channel[None, :]
    mask = real[:, None] & (channel < H)[None, :]
    value = tl.load(grad + place, mask, 0.0).to(tl.float32)
    value = add_low_rank(value, rows_of(h, row, real, R), thin + head * H * R, channel, H, R)
    tl.store(grad + place, value, mask)
    total = tl.sum(value * tl.load(out + place, mask, 0.0).to(tl.float32), 1)
    tl.store(delta + head * rows + row, total, real)


@triton.jit
def backward_queries(
    q, k, v, grad, lse, delta, dq, queries, path, row_stride, out_stride, total, scale, factor, window,
    GROUPS: tl.constexpr, H: tl.constexpr, H1: tl.constexpr, H2: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WINDOWED: tl.constexpr, TREE: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries."""
    first, count, before, ancestors, offset = _query_tile(queries)
    head = tl.program_id(1).to(tl.int64)
    if count > 0:
        node = first - (before - ancestors)
        row = tl.arange(0, QUERIES)
        query, real = (first + row).to(tl.int64), row < count
        q += head * H
        k += (head // GROUPS) * H
        v += (head // GROUPS) * H
        grad += head * H
        q1, g1 = _tile(q, query, real, row_stride, H, 0, H1), _tile(grad, query, real, out_stride, H, 0, H1)
        dq1 = tl.zeros([QUERIES, H1], tl.float32)
        if H2 > 0:
            q2, g2 = _tile(q, query, real, row_stride, H, H1, H2), _tile(grad, query, real, out_stride, H, H1, H2)
            dq2 = tl.zeros([QUERIES, H2], tl.float32)
        log_norm = tl.load(lse + head * total + query, real, 0.0)
        d = tl.load(delta + head * total + query, real, 0.0)
        low, high = 0, before + count
        if WINDOWED:
            low = tl.maximum(0, (before - window + 1) // KEYS * KEYS)
        for start in range(low, high, KEYS):
            j = start + tl.arange(0, KEYS)
            token = _path_tokens(path + offset, j, high, ancestors, node, TREE)
            seen = j < high
            k1, v1 = _tile(k, token, seen, row_stride, H, 0, H1), _tile(v, token, seen, row_stride, H, 0, H1)
            scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
            d_weights = tl.dot(g1, tl.trans(v1), input_precision="ieee")
            if H2 > 0:
                k2, v2 = _tile(k, token, seen, row_stride, H, H1, H2), _tile(v, token, seen, row_stride, H, H1, H2)
                scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee")
                d_weights = tl.dot(g2, tl.trans(v2), d_weights, input_precision="ieee")
            weights = tl.exp2(scores * scale - log_norm[:, None])
            if WINDOWED:
                weights = tl.where(j[None, :] > (before + row - window)[:, None], weights, 0.0)
            if start + KEYS > before:
                weights = tl.where(j[None, :] <= (before + row)[:, None], weights, 0.0)
            d_scores = (weights * (d_weights - d[:, None])).to(k1.dtype)
            dq1 = tl.dot(d_scores, k1, dq1, input_precision="ieee")
            if H2 > 0:
                dq2 = tl.dot(d_scores, k2, dq2, input_precision="ieee")
        dq += head * H
        _store(dq, query, real, row_stride, dq1 * factor, H, 0, H1)
        if H2 > 0:
            _store(dq, query, real, row_stride, dq2 * factor, H, H1, H2)


@triton.jit
def backward_keys(
    q, k, v, grad, lse, delta, dk, dv, parts, keys, positions, row_stride, out_stride, total, scale, factor, window,
    GROUPS: tl.constexpr, H: tl.constexpr, H1: tl.constexpr, H2: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values, or this program's partial sum of them.

    The programs of a tile's heads are adjacent in the grid, so they read the same rows of queries at about the same
    time: 988 us instead of 1,270 with documents of 1,250 tokens, and 5% less with 150 tokens.
    """
    tile = keys + tl.program_id(1) * 5
    kv_head, kv_heads = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    first, count, low, high = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    slot = tl.load(tile + 4).to(tl.int64)
    if count > 0:
        row = tl.arange(0, KEYS)
        key, real = (first + row).to(tl.int64), row < count
        k += kv_head * H
        v += kv_head * H
        k1, v1 = _tile(k, key, real, row_stride, H, 0, H1), _tile(v, key, real, row_stride, H, 0, H1)
        dk1, dv1 = tl.zeros([KEYS, H1], tl.float32), tl.zeros([KEYS, H1], tl.float32)
        if H2 > 0:
            k2, v2 = _tile(k, key, real, row_stride, H, H1, H2), _tile(v, key, real, row_stride, H, H1, H2)
            dk2, dv2 = tl.zeros([KEYS, H2], tl.float32), tl.zeros([KEYS, H2], tl.float32)
        if WINDOWED:
            key_position = tl.load(positions + key, real, 0)
        for head in range(kv_head * GROUPS, (kv_head + 1) * GROUPS):
            for start in range(low, high, QUERIES):
                query = (start + tl.arange(0, QUERIES)).to(tl.int64)
                seeing = query < high
                q1 = _tile(q + head * H, query, seeing, row_stride, H, 0, H1)
                g1 = _tile(grad + head * H, query, seeing, out_stride, H, 0, H1)
                scores = tl.dot(k1, tl.trans(q1), input_precision="ieee")
                d_weights = tl.dot(v1, tl.trans(g1), input_precision="ieee")
                if H2 > 0:
                    q2 = _tile(q + head * H, query, seeing, row_stride, H, H1, H2)
                    g2 = _tile(grad + head * H, query, seeing, out_stride, H, H1, H2)
                    scores = tl.dot(k2, tl.trans(q2), scores, input_precision="ieee")
                    d_weights = tl.dot(v2, tl.trans(g2), d_weights, input_precision="ieee")
                log_norm = tl.load(lse + head * total + query, seeing, 0.0)
                d = tl.load(delta + head * total + query, seeing, 0.0)
                weights = tl.exp2(scores * scale - log_norm[None, :])
                if WINDOWED:
                    query_position = tl.load(positions + query, seeing, 0)
                    weights = tl.where(query_position[None, :] - key_position[:, None] < window, weights, 0.0)
                if start < first + KEYS:  # otherwise all these queries come after the tile's keys
                    weights = tl.where(key[:, None] <= query[None, :], weights, 0.0)
                d_scores = (weights * (d_weights - d[None, :])).to(q1.dtype)
                weights = weights.to(q1.dtype)
                dv1 = tl.dot(weights, g1, dv1, input_precision="ieee")
                dk1 = tl.dot(d_scores, q1, dk1, input_precision="ieee")
                if H2 > 0:
                    dv2 = tl.dot(weights, g2, dv2, input_precision="ieee")
                    dk2 = tl.dot(d_scores, q2, dk2, input_precision="ieee")
        if slot < 0:
            dk += kv_head * H
            dv += kv_head * H
            _store(dk, key, real, row_stride, dk1 * factor, H, 0, H1)
            _store(dv, key, real, row_stride, dv1, H, 0, H1)
            if H2 > 0:
                _store(dk, key, real, row_stride, dk2 * factor, H, H1, H2)
                _store(dv, key, real, row_stride, dv2, H, H1, H2)
        else:
            part = parts + (slot * kv_heads + kv_head) * 2 * KEYS * H
            place = row.to(tl.int64)
            _store(part, place, real, H, dk1 * factor, H, 0, H1)
            _store(part + KEYS * H, place, real, H, dv1, H, 0, H1)
            if H2 > 0:
                _store(part, place, real, H, dk2 * factor, H, H1, H2)
                _store(part + KEYS * H, place, real, H, dv2, H, H1, H2)


@triton.jit
def sum_parts(parts, sums, dk, dv, row_stride, H: tl.constexpr, HP: tl.constexpr, KEYS: tl.constexpr):
    """Add up the partial sums of a tile of keys, always in the same order."""
    tile = sums + tl.program_id(0) * 4
    kv_head, kv_heads = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    first, count, slot, slots = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2).to(tl.int64), tl.load(tile + 3)
    if count > 0:
        row, channel = tl.arange(0, KEYS), tl.arange(0, HP)
        real = row < count
        mask = real[:, None] & (channel < H)[None, :]
        place = row[:, None] * H + channel[None, :]
        dk_tile, dv_tile = tl.zeros([KEYS, HP], tl.float32), tl.zeros([KEYS, HP], tl.float32)
        for i in range(slots):
            part = parts + ((slot + i) * kv_heads + kv_head) * 2 * KEYS * H
            dk_tile += tl.load(part + place, mask, 0.0)
            dv_tile += tl.load(part + KEYS * H + place, mask, 0.0)
        key = (first + row).to(tl.int64)
        _store(dk + kv_head * H, key, real, row_stride, dk_tile, H, 0, HP)
        _store(dv + kv_head * H, key, real, row_stride, dv_tile, H, 0, HP)
