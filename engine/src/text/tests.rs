//! Small vocabularies made by hand.

use formats::gguf::{Metadata, Value};

use super::bpe::byte_letters;
use super::*;

fn metadata(model: &str, tokens: &[String], types: &[i32]) -> Metadata {
    let mut m = Metadata::new();
    m.set("tokenizer.ggml.model", Value::string(model));
    m.set("tokenizer.ggml.tokens", Value::string_array(tokens));
    m.set("tokenizer.ggml.token_type", Value::i32_array(types));
    m
}

/// Bytes, a few merges, ChatML's tokens, one user-defined token.
fn byte_level_metadata() -> Metadata {
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        .map(String::from)
        .to_vec();
    let mut types = vec![3; 3];
    tokens.extend(byte_letters().map(String::from));
    for t in ["he", "ll", "hell", "hello", "Ġhello", "Ġh", "ello", "in"] {
        tokens.push(t.into());
    }
    types.resize(tokens.len(), 1);
    tokens.push("<tab>".into());
    types.push(4);
    let mut m = metadata("gpt2", &tokens, &types);
    let merges = [
        "h e", "l l", "he ll", "hell o", "Ġ hello", "i n", "x y", "l l", "", " ",
    ];
    m.set("tokenizer.ggml.merges", Value::string_array(&merges));
    m.set("tokenizer.ggml.pre", Value::string("smollm"));
    m.set("tokenizer.ggml.bos_token_id", Value::u32(1));
    m.set("tokenizer.ggml.eos_token_id", Value::u32(2));
    m.set("tokenizer.ggml.add_bos_token", Value::bool(false));
    m
}

pub(super) fn byte_level() -> Tokenizer {
    Tokenizer::from_metadata(&byte_level_metadata()).unwrap()
}

/// `<unk>`, `<s>`, `</s>`, the byte tokens, then pieces with scores.
fn spm_metadata(pieces: &[(&str, f32)]) -> Metadata {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut types = vec![2, 3, 3];
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    types.resize(tokens.len(), 6);
    let mut scores = vec![0.0; tokens.len()];
    for (p, s) in pieces {
        tokens.push((*p).into());
        types.push(1);
        scores.push(*s);
    }
    let mut m = metadata("llama", &tokens, &types);
    m.set("tokenizer.ggml.scores", Value::f32_array(&scores));
    m
}

fn spm() -> Tokenizer {
    Tokenizer::from_metadata(&spm_metadata(&[
        ("▁", -1.0),
        ("a", -2.0),
        ("b", -3.0),
        ("ab", -10.0),
        ("ba", -9.0),
        ("aa", -11.0),
        ("aaaa", -11.0),
        ("aaa", -11.0),
        ("▁a", -20.0),
        ("s", -30.0),
        ("<s", -31.0),
        (">", -32.0),
    ]))
    .unwrap()
}

fn texts(tok: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let text = |id: &u32| String::from_utf8_lossy(tok.vocab().text(*id)).into_owned();
    ids.iter().map(text).collect()
}

#[test]
fn byte_level_merges_by_rank() {
    let tok = byte_level();
    let cut = |t: &str| texts(&tok, &tok.encode(t, true));
    assert_eq!(cut("hello hello"), ["hello", "Ġhello"]);
    assert_eq!(cut("hellin 1"), ["hell", "in", "Ġ", "1"]);
    assert_eq!(cut("<|im_end|>he"), ["<|im_end|>", "he"]);
    assert_eq!(tok.encode("", true), [0; 0]);
    let plain = tok.encode("<|im_end|>", false);
    assert_eq!(plain.len(), 10);
    // user-defined tokens are cut out either way
    assert_eq!(
        texts(&tok, &tok.encode("h<tab>e", false)),
        ["h", "<tab>", "e"]
    );
}

#[test]
fn bytes_without_a_token_vanish_and_separate() {
    let mut m = byte_level_metadata();
    let tokens: Vec<Vec<u8>> = m
        .get("tokenizer.ggml.tokens")
        .and_then(Value::as_array)
        .and_then(|a| a.strings())
        .unwrap()
        .map(|t| {
            if t == b"o" {
                b"OO".to_vec()
            } else {
                t.to_vec()
            }
        })
        .collect();
    m.set("tokenizer.ggml.tokens", Value::string_array(&tokens));
    let tok = Tokenizer::from_metadata(&m).unwrap();
    assert_eq!(texts(&tok, &tok.encode("hoe", true)), ["h", "e"]);
}

#[test]
fn spm_prefers_scores_then_the_left() {
    let tok = spm();
    let cut = |t: &str| texts(&tok, &tok.encode(t, true));
    assert_eq!(cut("aba"), ["▁a", "ba"]);
    // five equal letters: pairs from the left first, then the two pairs
    assert_eq!(cut("<s>baaaaa"), ["<s>", "▁", "ba", "aaaa"]);
    assert_eq!(cut("é"), ["▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(tok.encode_prompt("a").first(), Some(&1));
    assert_eq!(tok.encode_prompt(""), [1]);
    assert_eq!(tok.encode("", true), [0; 0]);
    // a prefix after every special token
    assert_eq!(cut("b<s>b"), ["▁", "b", "<s>", "▁", "b"]);
}

#[test]
fn plain_text_never_gives_a_control_token() {
    // "<s" and ">" are tokens, so merging alone would reach "<s>"
    let tok = spm();
    let ids = tok.encode("<s>", false);
    assert!(!ids.contains(&1), "{:?}", texts(&tok, &ids));
}

#[test]
fn decode_is_the_way_back() {
    let (bpe, spm) = (byte_level(), spm());
    for t in [
        "",
        "a",
        " a",
        "  hello <s> é 日本語 \r\n\t 👍🏽 x",
        "<|im_x|>",
    ] {
        for tok in [&bpe, &spm] {
            assert_eq!(tok.decode(&tok.encode(t, false)), t);
            let mut stream = StreamDecoder::whole(tok);
            let mut out = String::new();
            for id in tok.encode(t, false) {
                out.push_str(stream.push(id));
            }
            out.push_str(stream.finish());
            assert_eq!(out, t);
        }
    }
    assert_eq!(bpe.decode(&[1, 2]), "");
    assert_eq!(bpe.piece_bytes(1), b"<|im_start|>");
    assert_eq!(bpe.piece_bytes(u32::MAX), b"");
}

#[test]
fn a_stream_never_prints_half_a_character() {
    let tok = spm();
    let byte = |b: u8| u32::from(b) + 3;
    let mut s = StreamDecoder::new(&tok);
    for b in &"👍".as_bytes()[..3] {
        assert_eq!(s.push(byte(*b)), "");
    }
    assert_eq!(s.push(byte("👍".as_bytes()[3])), "👍");
    assert_eq!(s.push(byte(0xE6)), "");
    assert_eq!(s.push(byte(b'x')), "\u{FFFD}x");
    assert_eq!(s.push(byte(0xFF)), "\u{FFFD}");
    assert_eq!(s.push(byte(0xE6)), "");
    assert_eq!(s.finish(), "\u{FFFD}");
    assert_eq!(s.finish(), "");
    // text that continues keeps its space
    let a = tok.vocab().id("▁a".as_bytes()).unwrap();
    assert_eq!(StreamDecoder::new(&tok).push(a), " a");
    assert_eq!(StreamDecoder::whole(&tok).push(a), "a");
}

#[test]
fn a_stream_equals_lossy_decoding() {
    let tok = spm();
    // every pair and some longer mixes of the bytes at which UTF-8 turns
    let turns = [
        0x41, 0x80, 0xBF, 0xC2, 0xE0, 0xA0, 0xED, 0xF0, 0x90, 0xF4, 0xFF,
    ];
    let mut seed = 1_u32;
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..6)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                turns[(seed >> 16) as usize % turns.len()]
            })
            .collect();
        let mut s = StreamDecoder::new(&tok);
        let mut out = String::new();
        for b in &bytes {
            out.push_str(s.push(u32::from(*b) + 3));
        }
        out.push_str(s.finish());
        assert_eq!(out, String::from_utf8_lossy(&bytes), "{bytes:x?}");
    }
}

#[test]
fn ends_of_generation() {
    let tok = byte_level();
    let eog: Vec<u32> = tok.vocab().eog().iter().copied().collect();
    assert_eq!(eog, [0, 2]);
    assert!(tok.is_eog(2) && !tok.is_eog(1) && !tok.is_eog(u32::MAX));
}

#[test]
fn lying_metadata_is_an_error() {
    let base = byte_level_metadata;
    let n = base()
        .get("tokenizer.ggml.tokens")
        .and_then(Value::as_array)
        .unwrap()
        .len();
    let cases: [(&str, Value, &str); 9] = [
        ("tokenizer.ggml.model", Value::string("bert"), "bert"),
        ("tokenizer.ggml.model", Value::u32(3), "u32"),
        ("tokenizer.ggml.pre", Value::string("tekken"), "tekken"),
        ("tokenizer.ggml.tokens", Value::u32(3), "u32"),
        (
            "tokenizer.ggml.tokens",
            Value::string_array::<&str>(&[]),
            "empty",
        ),
        (
            "tokenizer.ggml.tokens",
            Value::string_array(&["a", "a"]),
            "same text",
        ),
        (
            "tokenizer.ggml.scores",
            Value::f32_array(&[1.0]),
            "1 entries",
        ),
        (
            "tokenizer.ggml.token_type",
            Value::i32_array(&vec![1; n - 1]),
            "entries",
        ),
        ("tokenizer.ggml.add_bos_token", Value::string("yes"), "bool"),
    ];
    for (key, value, says) in cases {
        let mut m = base();
        m.set(key, value);
        let e = Tokenizer::from_metadata(&m).unwrap_err().to_string();
        assert!(e.contains(says), "{key}: {e}");
    }
    for key in [
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ] {
        let mut m = base();
        m.remove_if(|k| k == key);
        let e = Tokenizer::from_metadata(&m).unwrap_err().to_string();
        assert!(e.contains(key), "{e}");
    }
    // ids out of range fall back; one that is needed and cannot be had is an error
    let mut m = base();
    m.set("tokenizer.ggml.eos_token_id", Value::u32(u32::MAX));
    assert_eq!(Tokenizer::from_metadata(&m).unwrap().eos(), Some(11));
    let mut m = metadata("gpt2", &["a".into()], &[1]);
    m.set("tokenizer.ggml.merges", Value::string_array::<&str>(&[]));
    m.set("tokenizer.ggml.add_bos_token", Value::bool(true));
    assert!(Tokenizer::from_metadata(&m).is_err());
}

#[test]
fn long_inputs_take_little_time() {
    let n = 1 << 18;
    for tok in [byte_level(), spm()] {
        for unit in ["a", " ", "<", "hello ", "<s>", "é", "1", "ab"] {
            let text = unit.repeat(n / unit.len());
            let begin = std::time::Instant::now();
            let ids = tok.encode(&text, true);
            assert!(!ids.is_empty());
            let taken = begin.elapsed();
            // quadratic work would take minutes
            assert!(taken.as_secs() < 20, "{unit:?}: {taken:?}");
        }
    }
}

#[test]
fn shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Tokenizer>();
    check::<ChatTemplate>();
    check::<Sampler>();
}
