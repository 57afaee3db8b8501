//! Profiles of well-known hosts, derived from published figures: nobody has measured them here.

use formats::measured::{AttentionTime, CodecTime, Curve, MatrixTime, PROFILE_VERSION, Profile};

use formats::blocks::BlockType;

/// Numbers of rows at which derived curves have points.
const ROWS: [u32; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
/// The part of the published memory bandwidth that kernels are taken to reach.
const BANDWIDTH_SHARE: f64 = 0.7;
/// The part of the published arithmetic that kernels are taken to reach.
const COMPUTE_SHARE: f64 = 0.4;
/// Types with curves of their own.
const TYPES: [BlockType; 14] = [
    BlockType::Q2_K,
    BlockType::Q3_K,
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::IQ4_XS,
    BlockType::IQ4_NL,
    BlockType::Q4_K,
    BlockType::Q5_1,
    BlockType::Q5_K,
    BlockType::Q6_K,
    BlockType::Q8_0,
    BlockType::F16,
    BlockType::BF16,
    BlockType::F32,
];

/// A host as its maker describes it.
struct Host {
    name: &'static str,
    machine: &'static str,
    /// Bandwidth of its memory, 10⁹ bytes per second.
    gb_per_s: f64,
    /// Multiplications and additions in f32, 10¹² per second.
    tflops: f64,
    memory_bytes: u64,
    /// Launching the kernels of a layer, nanoseconds.
    layer_ns: f64,
    /// One value of a row through codec `tcq`, there and back, nanoseconds (its processor).
    codec_ns: f64,
    source: &'static str,
}

const HOSTS: [Host; 3] = [
    Host {
        name: "jetson-xavier-nx",
        machine: "NVIDIA Jetson Xavier NX 8GB",
        gb_per_s: 59.7,
        tflops: 0.84,
        memory_bytes: 8 << 30,
        layer_ns: 200e3,
        codec_ns: 45.0,
        source: "59.7 GB/s; 384 CUDA cores at 1.1 GHz",
    },
    Host {
        name: "jetson-agx-orin",
        machine: "NVIDIA Jetson AGX Orin 64GB",
        gb_per_s: 204.8,
        tflops: 5.3,
        memory_bytes: 64 << 30,
        layer_ns: 120e3,
        codec_ns: 30.0,
        source: "204.8 GB/s; 2048 CUDA cores at 1.3 GHz",
    },
    Host {
        name: "rtx-a6000",
        machine: "NVIDIA RTX A6000 48GB",
        gb_per_s: 768.0,
        tflops: 38.7,
        memory_bytes: 48 << 30,
        layer_ns: 60e3,
        codec_ns: 15.0,
        source: "768 GB/s; 38.7 TFLOPS in f32",
    },
];

/// The names that [`derived`] knows.
pub fn names() -> String {
    HOSTS.map(|h| h.name).join(", ")
}

/// The profile of the host called `name`, marked as derived.
///
/// A product with `w` weights takes the longer of reading them (0.7 of the bandwidth) and of its
/// 2·rows·w operations (0.4 of the arithmetic); attention likewise over keys and values in f16.
pub fn derived(name: &str) -> Option<Profile> {
    let h = HOSTS.iter().find(|h| h.name == name)?;
    let bytes_per_ns = h.gb_per_s * BANDWIDTH_SHARE;
    let ops_per_ns = h.tflops * 1e3 * COMPUTE_SHARE;
    let curve = |bytes: f64, ops: f64| Curve {
        rows: ROWS.to_vec(),
        ns: ROWS
            .iter()
            .map(|n| (bytes / bytes_per_ns).max(f64::from(*n) * ops / ops_per_ns))
            .collect(),
    };
    let codec = |codec: &str, of_tcq: f64| {
        let ns = h.codec_ns * of_tcq;
        CodecTime {
            codec: codec.to_owned(),
            encode_fixed_ns: 5e3,
            encode_value_ns: ns * 2.0 / 3.0,
            decode_fixed_ns: 5e3,
            decode_value_ns: ns / 3.0,
        }
    };
    Some(Profile {
        format: Profile::FORMAT.to_owned(),
        version: PROFILE_VERSION,
        machine: h.machine.to_owned(),
        build: format!("derived by splitconv {}", env!("CARGO_PKG_VERSION")),
        device: "gpu".to_owned(),
        threads: 0,
        derived: true,
        loaded: false,
        notes: vec![format!(
            "from published figures ({}), of which {BANDWIDTH_SHARE} of the bandwidth and {COMPUTE_SHARE} of the arithmetic are taken to be reached; not measured",
            h.source
        )],
        matrices: TYPES
            .iter()
            .map(|ty| MatrixTime {
                block_type: ty.name().to_owned(),
                curve: curve(ty.bits_per_weight() / 8.0, 2.0),
            })
            .collect(),
        // A key and a value of two bytes for each query value, a product each.
        attention: vec![AttentionTime {
            positions: 1024,
            curve: curve(4.0, 4.0),
        }],
        layer_fixed_ns: h.layer_ns,
        layer_value_ns: 40.0 / bytes_per_ns,
        pass_fixed_ns: 100e3,
        embed_value_ns: 1.0,
        sample_value_ns: 0.1,
        codecs: vec![
            codec("tcq", 1.0),
            codec("ts-tabq", 0.7),
            codec("int8", 0.1),
            codec("f16", 0.05),
            codec("f32", 0.02),
        ],
        message_ns: Some(200e3),
        memory_gb_per_s: bytes_per_ns,
        load_gb_per_s: 1.0,
        // What a driver keeps: a guess.
        runtime_bytes: 400 << 20,
        memory_bytes: Some(h.memory_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_one_is_a_sound_profile_and_says_that_it_is_derived() {
        for name in names().split(", ") {
            let p = derived(name).unwrap();
            p.check().unwrap();
            assert!(p.derived && p.notes[0].contains("not measured"));
            let (q4, own) = p.matrix(BlockType::Q4_K).unwrap();
            assert!(own && q4.at(512.0) > q4.at(1.0));
        }
        assert!(derived("cray-1").is_none());
    }
}
