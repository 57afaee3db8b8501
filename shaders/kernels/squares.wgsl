// Cooperative matrices in plain WGSL: every thread of a subgroup holds and computes all of each square.
// Slow, and only for tests on adapters that have none.

struct Square {
    at: array<f32, SIZE * SIZE>,
}

/// Weights row after row, from `first` of the tile.
fn square_of_weights(first: u32) -> Square {
    var square: Square;
    for (var i = 0u; i < SIZE * SIZE; i += 1u) {
        square.at[i] = f32(tile_w[first + i / SIZE * STRIDE + i % SIZE]);
    }
    return square;
}

/// Activations column after column, from `first`.
fn square_of_activations(first: u32) -> Square {
    var square: Square;
    for (var i = 0u; i < SIZE * SIZE; i += 1u) {
        square.at[i] = f32(activations[first + i % SIZE * matrix.x_stride + i / SIZE]);
    }
    return square;
}

fn multiply_add(a: Square, b: Square, c: Square) -> Square {
    var left = a;
    var right = b;
    var sum = c;
    for (var i = 0u; i < SIZE * SIZE; i += 1u) {
        for (var k = 0u; k < SIZE; k += 1u) {
            sum.at[i] = fma(left.at[i / SIZE * SIZE + k], right.at[k * SIZE + i % SIZE], sum.at[i]);
        }
    }
    return sum;
}

/// All threads store the same.
fn store_square(square: Square, first: u32) {
    var all = square;
    for (var i = 0u; i < SIZE * SIZE; i += 1u) {
        sums[first + i] = all.at[i];
    }
}
