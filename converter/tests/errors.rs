//! What goes wrong is said in one line, and leaves nothing behind.

mod common;

use common::{Bench, cloud, edge, flip};
use fixtures::LlamaShape;
use formats::blocks::BlockType;
use formats::gguf::{Gguf, Metadata, TensorDecl, Value, Writer};

/// Writes a model again with other metadata or other tensors.
fn rewrite(
    from: &Gguf,
    to: &std::path::Path,
    edit: impl Fn(&mut Metadata),
    keep: impl Fn(&mut TensorDecl) -> bool,
) {
    let mut meta = from.metadata().clone();
    edit(&mut meta);
    let mut kept = Vec::new();
    let mut decls = Vec::new();
    for t in from.tensors() {
        let mut decl = TensorDecl {
            name: t.name.clone(),
            dims: t.dims.clone(),
            block_type: t.block_type,
        };
        if keep(&mut decl) {
            decls.push(decl);
            kept.push(t);
        }
    }
    let file = std::fs::File::create(to).unwrap();
    let mut writer = Writer::new(file, &meta, decls).unwrap();
    for t in kept {
        writer.write(from.data(t)).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn cuts_that_leave_a_half_empty() {
    let bench = Bench::new(&LlamaShape::tiny());
    let cut = |n: &str| bench.run(&["m.gguf", "--split", n]);
    cut("0").fails_with(&["m.gguf", "--split 0", "edge", "1 to 5"]);
    cut("6").fails_with(&["--split 6", "cloud", "1 to 5"]);
    cut("4000000000").fails_with(&["cloud", "6 layers"]);
    assert_eq!(cut("x").code, 2);
    assert_eq!(bench.run(&["m.gguf"]).code, 2);
    assert_eq!(bench.names(), ["m.gguf"]);
    let one = Bench::new(&LlamaShape {
        n_layer: 1,
        ..LlamaShape::tiny()
    });
    one.run(&["m.gguf", "--split", "1"])
        .fails_with(&["m.gguf", "one layer", "splitrun"]);
}

#[test]
fn files_that_are_no_model() {
    let bench = Bench::new(&LlamaShape::tiny());
    let convert = |name: &str| bench.run(&[name, "--split", "2"]);
    convert("absent.gguf").fails_with(&["absent.gguf"]);
    std::fs::write(bench.path("text.gguf"), "not a model at all").unwrap();
    convert("text.gguf").fails_with(&["text.gguf", "not a GGUF", "convert_hf_to_gguf"]);
    std::fs::write(bench.path("empty.gguf"), "").unwrap();
    convert("empty.gguf").fails_with(&["empty.gguf"]);
    convert(".").fails_with(&["."]);
    let whole = std::fs::read(bench.path("m.gguf")).unwrap();
    let header = bench.open("m.gguf").data_start();
    for cut in (0..header)
        .step_by(97)
        .chain([header, whole.len() / 2, whole.len() - 64])
    {
        std::fs::write(bench.path("cut.gguf"), &whole[..cut]).unwrap();
        convert("cut.gguf").fails_with(&["cut.gguf"]);
    }
    // Counts that no file could hold.
    for (at, what) in [(8, "tensors"), (16, "keys")] {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        std::fs::write(bench.path("absurd.gguf"), &bytes).unwrap();
        convert("absurd.gguf").fails_with(&["absurd.gguf"]);
        assert!(!what.is_empty());
    }
}

#[test]
fn models_that_are_not_whole_llamas() {
    let bench = Bench::new(&LlamaShape::tiny());
    let source = bench.open("m.gguf");
    let path = bench.path("x.gguf");
    let convert = || bench.run(&["x.gguf", "--split", "2"]);
    let all = |_: &mut TensorDecl| true;
    let set = |key: &'static str, value: Value| move |m: &mut Metadata| m.set(key, value.clone());

    rewrite(
        &source,
        &path,
        set("general.architecture", Value::string("gemma3")),
        all,
    );
    convert().fails_with(&["x.gguf", "`gemma3`", "`llama`", "`qwen2`"]);
    rewrite(
        &source,
        &path,
        set("llama.expert_count", Value::u32(8)),
        all,
    );
    convert().fails_with(&["mixture of 8 experts"]);
    rewrite(&source, &path, set("llama.block_count", Value::u32(7)), all);
    convert().fails_with(&["`blk.6.attn_norm.weight`", "8 more", "missing"]);
    rewrite(
        &source,
        &path,
        set("llama.block_count", Value::u32(u32::MAX)),
        all,
    );
    convert().fails_with(&["`llama.block_count`", "4294967295", "4096"]);
    rewrite(
        &source,
        &path,
        set("llama.block_count", Value::u32(4096)),
        all,
    );
    convert().fails_with(&["missing"]);
    rewrite(&source, &path, set("llama.block_count", Value::u32(5)), all);
    convert().fails_with(&["`blk.5."]);
    rewrite(
        &source,
        &path,
        set("llama.feed_forward_length", Value::u32(128)),
        all,
    );
    convert().fails_with(&["`blk.0.ffn_gate.weight`", "[64, 256]", "[64, 128]"]);
    rewrite(
        &source,
        &path,
        set("llama.attention.head_count", Value::string("4")),
        all,
    );
    convert().fails_with(&["`llama.attention.head_count`"]);
    let heads = Value::i32_array(&[4, 4, 2, 2, 4, 4]);
    rewrite(
        &source,
        &path,
        set("llama.attention.head_count_kv", heads),
        all,
    );
    convert().fails_with(&["differs from layer to layer"]);
    let without = |m: &mut Metadata| m.remove_if(|k| k == "llama.embedding_length");
    rewrite(&source, &path, without, all);
    convert().fails_with(&["`llama.embedding_length`", "missing"]);

    let same = |_: &mut Metadata| {};
    for lost in [
        "token_embd.weight",
        "blk.0.attn_q.weight",
        "blk.5.ffn_norm.weight",
        "output_norm.weight",
    ] {
        rewrite(&source, &path, same, |t| t.name != lost);
        convert().fails_with(&["x.gguf", lost, "missing"]);
    }
    rewrite(&source, &path, same, |t| {
        if t.name == "output.weight" {
            t.name = "blk.1.ffn_gate_exps.weight".into();
        }
        true
    });
    convert().fails_with(&["x.gguf", "blk.1.ffn_gate_exps.weight", "splitrun"]);
    assert_eq!(bench.names(), ["m.gguf", "x.gguf"]);
}

/// What splitrun does not compute is no pair.
#[test]
fn models_that_splitrun_would_refuse() {
    let bench = Bench::new(&LlamaShape {
        rope_freqs: true,
        ..LlamaShape::tiny()
    });
    let source = bench.open("m.gguf");
    let path = bench.path("x.gguf");
    let convert = || bench.run(&["x.gguf", "--split", "2", "--dry-run"]);
    let all = |_: &mut TensorDecl| true;
    let refused = |key: &'static str, value: Value, words: &[&str]| {
        let set = |m: &mut Metadata| m.set(key, value.clone());
        rewrite(&source, &path, set, all);
        convert().fails_with(&[&["x.gguf", key], words].concat());
    };
    let scaling = "llama.rope.scaling.type";
    for kind in ["yarn", "longrope"] {
        refused(
            scaling,
            Value::string(kind),
            &[kind, "splitrun does not compute"],
        );
    }
    let value = "llama.attention.value_length";
    refused(
        value,
        Value::u32(32),
        &["32", "16", "splitrun does not compute"],
    );
    refused("llama.rope.freq_base", Value::f32(-1.0), &["-1"]);
    refused("llama.rope.dimension_count", Value::u32(15), &["odd"]);
    let eps = "llama.attention.layer_norm_rms_epsilon";
    for lost in [eps, "llama.context_length"] {
        rewrite(&source, &path, |m| m.remove_if(|k| k == lost), all);
        convert().fails_with(&["x.gguf", lost, "missing"]);
    }
    // Factors for heads of another width.
    let dims = |m: &mut Metadata| m.set("llama.rope.dimension_count", Value::u32(8));
    rewrite(&source, &path, dims, all);
    convert().fails_with(&["`rope_freqs.weight`", "[8]", "[4]"]);
    refused("llama.rope.scaling.factor", Value::f32(-2.0), &["-2"]);
    refused(scaling, Value::u32(1), &["not a name"]);
    for no in ["none", "linear"] {
        let set = |m: &mut Metadata| m.set(scaling, Value::string(no));
        rewrite(&source, &path, set, all);
        convert().ok();
    }
    // A tensor beside those that the engine reads: the head takes its name.
    let same = |_: &mut Metadata| {};
    for (name, way_out) in [
        ("blk.1.attn_output.bias", "no biases"),
        ("blk.1.attn_q_norm.weight", "splitrun"),
    ] {
        rewrite(&source, &path, same, |t| {
            if t.name == "output.weight" {
                t.name = name.into();
            }
            true
        });
        convert().fails_with(&["x.gguf", name, way_out, "without it"]);
    }
    rewrite(&source, &path, same, |t| {
        if t.name == "rope_freqs.weight" {
            t.name = "blk.1.attn_rot_embd.weight".into();
        }
        true
    });
    convert().ok();
}

#[test]
fn forced_types_that_do_not_fit() {
    let bench = Bench::new(&LlamaShape::tiny());
    let run = |args: &[&str]| bench.run(&[&["m.gguf", "--split", "2"], args].concat());
    run(&["--edge-type", "Q4_K"]).fails_with(&["token_embd.weight", "64", "Q4_K", "--tensor-type"]);
    run(&["--tensor-type", "blk.1.attn_q=Q2_K"]).fails_with(&["blk.1.attn_q.weight", "Q2_K"]);
    run(&["--tensor-type", "nothing=Q8_0"]).fails_with(&["'nothing=Q8_0'", "no tensor"]);
    run(&["--tensor-type", "_norm=Q8_0"]).fails_with(&["1-D"]);
    assert_eq!(run(&["--tensor-type", "ffn=Q9"]).code, 2);
    assert_eq!(run(&["--edge-bits", "7"]).code, 2);
    assert_eq!(run(&["--edge-type", "Q7_Z"]).code, 2);
}

#[test]
fn weights_that_cannot_be_encoded() {
    let shape = LlamaShape {
        matrix_type: BlockType::F32,
        ..LlamaShape::tiny()
    };
    let bench = Bench::new(&shape);
    let source = bench.open("m.gguf");
    let t = source.tensor("blk.1.ffn_up.weight").unwrap();
    let at = t.start + 3 * t.row_bytes();
    let spoil = |value: f32| {
        let mut bytes = std::fs::read(bench.path("m.gguf")).unwrap();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        std::fs::write(bench.path("bad.gguf"), bytes).unwrap();
    };
    let run = |bits| bench.run(&["bad.gguf", "--split", "2", "--edge-bits", bits]);
    spoil(f32::NAN);
    run("4").fails_with(&["bad.gguf", "`blk.1.ffn_up.weight`", "row 3", "NaN"]);
    spoil(f32::NEG_INFINITY);
    run("8").fails_with(&["`blk.1.ffn_up.weight`", "-inf"]);
    spoil(70_000.0);
    run("16").fails_with(&["bad.gguf", "`blk.1.ffn_up.weight`", "70000", "BF16"]);
    // A block's scale is a half float too.
    spoil(1e9);
    for (bits, ty) in [("4", "IQ4_NL"), ("8", "Q8_0")] {
        run(bits).fails_with(&["`blk.1.ffn_up.weight`", "1000000000", ty, "BF16"]);
    }
    assert_eq!(bench.names(), ["bad.gguf", "m.gguf"]);
}

#[test]
fn outputs_in_the_way() {
    let bench = Bench::new(&LlamaShape::tiny());
    let args = ["m.gguf", "--split", "2"];
    std::fs::write(bench.path(&cloud(2, "e4c8")), "mine").unwrap();
    bench.run(&args).fails_with(&[&cloud(2, "e4c8"), "--force"]);
    assert_eq!(bench.names().len(), 2);
    assert_eq!(
        std::fs::read(bench.path(&cloud(2, "e4c8"))).unwrap(),
        b"mine"
    );
    bench.run(&[&args[..], &["--force"]].concat()).ok();
    bench.run(&["verify", "m"]).ok();
    bench.run(&args).fails_with(&["exists already"]);
    // A half is no source.
    for name in [edge(2, "e4c8"), cloud(2, "e4c8")] {
        bench
            .run(&[&name, "--split", "1"])
            .fails_with(&[&name, "already", "half"]);
    }
    // A folder that cannot be one.
    bench
        .run(&[&args[..], &["--out", "m.gguf"]].concat())
        .fails_with(&["m.gguf", "not a folder", "--out"]);
}

/// The cloud's name cannot be had after the edge got its own: the old edge comes back.
#[test]
fn what_was_to_be_replaced_survives_a_failure() {
    let bench = Bench::new(&LlamaShape::tiny());
    let (e, c) = (edge(2, "e4c8"), cloud(2, "e4c8"));
    std::fs::write(bench.path(&e), "mine").unwrap();
    std::fs::create_dir(bench.path(&c)).unwrap();
    bench
        .run(&["m.gguf", "--split", "2", "--force"])
        .fails_with(&[&c, "cannot write"]);
    assert_eq!(std::fs::read(bench.path(&e)).unwrap(), b"mine");
    assert!(std::fs::read_dir(bench.path(&c)).unwrap().next().is_none());
    // The work was not in vain: without the folder in the way only the names are missing.
    std::fs::remove_dir(bench.path(&c)).unwrap();
    let again = bench.run(&["m.gguf", "--split", "2", "--force"]).ok();
    assert!(
        again.stderr.contains("57 of 57 tensors are finished"),
        "{}",
        again.stderr
    );
    assert_eq!(bench.names(), [e, c, "m.gguf".to_owned()]);
}

/// The second reader takes no such path; the digests still speak.
#[cfg(target_os = "linux")]
#[test]
fn verify_in_a_folder_whose_name_is_not_text() {
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::new(&LlamaShape::tiny());
    bench.run(&["m.gguf", "--split", "2"]).ok();
    let folder = bench.dir.path().join(std::ffi::OsStr::from_bytes(b"f\xff"));
    std::fs::create_dir(&folder).unwrap();
    for name in [edge(2, "e4c8"), cloud(2, "e4c8")] {
        std::fs::rename(bench.path(&name), folder.join(&name)).unwrap();
    }
    let mut command = bench.command(&["verify"]);
    command.arg(&folder);
    common::Run::of(command).ok();
}

#[test]
fn verify_finds_what_is_wrong() {
    let bench = Bench::new(&LlamaShape::tiny());
    bench.run(&["m.gguf", "--split", "2"]).ok();
    bench.run(&["m.gguf", "--split", "3", "--out", "b"]).ok();
    let (e, c) = (edge(2, "e4c8"), cloud(2, "e4c8"));
    let both = bench.run(&["verify", &e, &c, "--json"]).ok().json();
    assert_eq!(both["ok"], true);
    assert_eq!(both["whole_pair"], true);
    let one = bench.run(&["verify", &e, "--json"]).ok().json();
    assert_eq!(one["whole_pair"], false);
    bench
        .run(&["verify", "m.gguf"])
        .fails_with(&["m.gguf", "not a half"]);
    bench
        .run(&["verify", &e, &e])
        .fails_with(&["both the edge half"]);
    let other = format!("b/{}", cloud(3, "e4c8"));
    let ids = |f: &str| {
        let json = bench.run(&["inspect", f, "--json"]).ok().json();
        json["half"]["pair_id"].as_str().unwrap().to_owned()
    };
    bench
        .run(&["verify", &e, &other])
        .fails_with(&[&e, &other, &ids(&e), &ids(&other)]);
    // One bit of the metadata: the rotary base, 10000.0.
    let bytes = std::fs::read(bench.path(&e)).unwrap();
    let name = b"llama.rope.freq_base";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4;
    flip(&bench.path(&e), at);
    bench
        .run(&["verify", &e])
        .fails_with(&[&e, "metadata", "digest"]);
    flip(&bench.path(&e), at);
    bench.run(&["verify", &e, &c]).ok();
    let t = bench.open(&c);
    let t = t.tensor("blk.4.attn_v.weight").unwrap();
    flip(&bench.path(&c), t.start + t.bytes - 1);
    bench
        .run(&["verify", &e, &c])
        .fails_with(&[&c, "`blk.4.attn_v.weight`", "digest"]);
}

/// A write that fails in the middle, as on a full disk: the limit on a file's size answers with
/// an error once `SIGXFSZ` is ignored.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let bench = Bench::new(&LlamaShape {
        n_embd: 256,
        ..LlamaShape::tiny()
    });
    let script = r#"trap '' XFSZ; ulimit -f 64; exec "$0" m.gguf --split 2"#;
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", script, env!("CARGO_BIN_EXE_splitconv")])
        .current_dir(bench.dir.path());
    common::Run::of(command).fails_with(&[
        "cannot write",
        ".partial",
        "make room",
        "File too large",
    ]);
    assert_eq!(bench.names(), ["m.gguf"]);
}

/// A real full device, with its own errno.
#[cfg(target_os = "linux")]
#[test]
fn no_space_left_is_named() {
    use std::io::Write;
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let error = (&full).write_all(b"x").unwrap_err();
    let error = converter::stream::StreamError::write("m.partial".as_ref(), error.into());
    let line = converter::one_line(&error);
    for word in ["m.partial", "make room", "No space left"] {
        assert!(line.contains(word), "{line}");
    }
}

#[cfg(unix)]
#[test]
fn two_at_once_do_not_mix() {
    let bench = Bench::new(&LlamaShape::tiny());
    let partial = bench.path(&format!("{}.partial", edge(2, "e4c8")));
    let other = std::fs::File::create(&partial).unwrap();
    other.lock().unwrap();
    bench
        .run(&["m.gguf", "--split", "2"])
        .fails_with(&["another splitconv"]);
    assert!(partial.exists());
    drop(other);
    bench.run(&["m.gguf", "--split", "2"]).ok();
    assert!(!partial.exists());
}
