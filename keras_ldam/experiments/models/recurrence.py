"""Training of a bidirectional LSTM on CPUs, where Keras' own spends its time between kernels.

The equations are those of `keras.layers.LSTM`, whose cells hold the weights; the order of
computation differs. Only the product with the state must wait for the previous step. The rest is
computed for `CHUNK` steps at once, forward and backward: few enough to stay in a core's cache and
enough for one efficient matrix product. `benchmarks/README.md` has the gain.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

CHUNK = 10
"""Time steps that are computed together. 10 steps of 64 sequences and 48 units take 0.5 MB."""


def suits(inputs: Any) -> bool:
    """Whether `bidirectional` trains faster than Keras: in float32, on TensorFlow without a GPU.

    With a GPU Keras calls cuDNN's kernel. In bfloat16 one sigmoid for all gates is too coarse.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return inputs.dtype == tf.float32 and not tf.config.list_physical_devices("GPU")


def reversed_within(step: Any, length: Any) -> Any:
    """Where a step goes when its sequence is reversed within its length; padding stays in place."""
    return ops.where(step < length, length - 1 - step, step)


def bidirectional(
    inputs: Any, lengths: Any, forward: keras.layers.LSTMCell, backward: keras.layers.LSTMCell
) -> Any:
    """Computes the states of both directions.

    Args:
        inputs: Sequences padded at the end, float32, shape `(batch, time, features)`.
        lengths: Number of real steps of each, int32, shape `(batch,)`.
        forward: A built `LSTMCell` of Keras with its default activations.
        backward: The same for the reversed sequences.

    Returns:
        States, shape `(batch, time, 2 * units)`, the forward ones first; arbitrary at padding.
    """
    import tensorflow as tf

    batch, time = tf.shape(inputs)[0], tf.shape(inputs)[1]
    units = forward.units
    flat = tf.reshape(inputs, (-1, inputs.shape[-1]))
    sequence, step = tf.range(batch), tf.range(time)

    def same(step, length):
        return step

    both = []
    for cell, order in ((forward, same), (backward, reversed_within)):
        # One gather puts steps in the direction's order and time before batch; another undoes it.
        there = sequence[None, :] * time + order(step[:, None], lengths[None, :])
        back = order(step[None, :], lengths[:, None]) * batch + sequence[:, None]
        there, back = tf.reshape(there, (-1,)), tf.reshape(back, (-1,))
        x = tf.reshape(_rows(flat, there, back), (time, batch, inputs.shape[-1]))
        # tanh(x) = 2 sigmoid(2x) - 1, so that one sigmoid serves all four gates.
        double = tf.constant([1.0] * (2 * units) + [2.0] * units + [1.0] * units)
        weights = (cell.kernel, cell.recurrent_kernel, cell.bias)
        states = _lstm(x, *(tf.convert_to_tensor(weight) * double for weight in weights))
        both.append(_rows(tf.reshape(states, (-1, units)), back, there))
    return tf.reshape(tf.concat(both, -1), (batch, time, 2 * units))


def _rows(table, there, back):
    """`tf.gather(table, there)` for a permutation, whose gradient is the gather by its inverse."""
    import tensorflow as tf

    @tf.custom_gradient
    def gathered(table):
        return tf.gather(table, there), lambda upstream: _rows(upstream, back, there)

    return gathered(table)


def _lstm(inputs, kernel, recurrent, bias):
    """States of an LSTM, shape `(time, batch, units)`, for inputs `(time, batch, features)`.

    The weights' columns are Keras' input, forget, candidate and output gate, those of the candidate
    doubled.
    """
    import tensorflow as tf

    time, batch, features = tf.shape(inputs)[0], tf.shape(inputs)[1], inputs.shape[-1]
    units = recurrent.shape[0]
    chunks = (time + CHUNK - 1) // CHUNK

    def empty(size):
        return tf.TensorArray(
            tf.float32, chunks, element_shape=(CHUNK, None, size), clear_after_read=False
        )

    def cut(x, size):
        x = tf.pad(x, ((0, chunks * CHUNK - time), (0, 0), (0, 0)))
        return empty(size).unstack(tf.reshape(x, (chunks, CHUNK, batch, size)))

    def join(array, size):
        return tf.reshape(array.stack(), (chunks * CHUNK, batch, size))[:time]

    @tf.custom_gradient
    def run(inputs, kernel, recurrent, bias):
        xs = cut(inputs, features)
        zeros = tf.zeros((batch, units))

        def forward(n, h, c, hs, cs, gates):
            z = tf.matmul(tf.reshape(xs.read(n), (-1, features)), kernel) + bias
            chunk = []
            for z_t in tf.unstack(tf.reshape(z, (CHUNK, batch, 4 * units)), num=CHUNK):
                gate = tf.sigmoid(z_t + tf.matmul(h, recurrent))
                i, f, g, o = tf.split(gate, 4, axis=-1)
                c = f * c + i * (g + g - 1)
                h = o * tf.tanh(c)
                chunk.append((h, c, gate))
            hs_n, cs_n, gates_n = (tf.stack(steps) for steps in zip(*chunk, strict=True))
            return n + 1, h, c, hs.write(n, hs_n), cs.write(n, cs_n), gates.write(n, gates_n)

        *_, hs, cs, gates = tf.while_loop(
            lambda n, *_: n < chunks,
            forward,
            (0, zeros, zeros, empty(units), empty(units), empty(4 * units)),
            parallel_iterations=1,
        )

        def gradient(upstream):
            errors = cut(upstream, units)
            recurrent_t, kernel_t = tf.transpose(recurrent), tf.transpose(kernel)

            def backward(n, dh, dc, dxs, d_kernel, d_recurrent, d_bias):
                def shifted(array, chunk):
                    """States before each step of the chunk; zeros before the first step."""
                    last = array.read(tf.maximum(n - 1, 0))[-1:]
                    return tf.concat([tf.where(n > 0, last, 0.0), chunk[:-1]], 0)

                h, c, gate = hs.read(n), cs.read(n), gates.read(n)
                i, f, g, o = tf.split(gate, 4, axis=-1)
                tanh_c = tf.tanh(c)
                # dz = slope * (dc, dc, dc, dh), gate by gate.
                slope = gate * (1 - gate)
                slope *= tf.concat([g + g - 1, shifted(cs, c), i + i, tanh_c], -1)
                dc_by_dh = o * (1 - tanh_c * tanh_c)
                dzs = []
                steps = (tf.unstack(a, num=CHUNK) for a in (slope, dc_by_dh, f, errors.read(n)))
                for slope_t, dc_by_dh_t, f_t, error in reversed(list(zip(*steps, strict=True))):
                    dh += error
                    dc += dh * dc_by_dh_t
                    dz = tf.concat([dc, dc, dc, dh], -1) * slope_t
                    dc *= f_t
                    dh = tf.matmul(dz, recurrent_t)
                    dzs.append(dz)
                dz = tf.concat(dzs[::-1], 0)
                x = tf.reshape(xs.read(n), (-1, features))
                h = tf.reshape(shifted(hs, h), (-1, units))
                dx = tf.reshape(tf.matmul(dz, kernel_t), (CHUNK, batch, features))
                return (
                    n - 1,
                    dh,
                    dc,
                    dxs.write(n, dx),
                    d_kernel + tf.matmul(x, dz, transpose_a=True),
                    d_recurrent + tf.matmul(h, dz, transpose_a=True),
                    d_bias + tf.reduce_sum(dz, 0),
                )

            sums = [tf.zeros_like(weight) for weight in (kernel, recurrent, bias)]
            *_, dxs, d_kernel, d_recurrent, d_bias = tf.while_loop(
                lambda n, *_: n >= 0,
                backward,
                (chunks - 1, zeros, zeros, empty(features), *sums),
                parallel_iterations=1,
            )
            return join(dxs, features), d_kernel, d_recurrent, d_bias

        return join(hs, units), gradient

    return run(inputs, kernel, recurrent, bias)
