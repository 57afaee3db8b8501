//! A run that is stopped, by whatever and whenever, is gone on with, and the bytes are those of
//! an unbroken one.
#![cfg(unix)]

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, Run, cloud, edge, flip};
use fixtures::LlamaShape;

const ARGS: [&str; 5] = ["m.gguf", "--split", "3", "--edge-bits", "3"];
const JOURNAL: &str = "m-s3e3c8-journal.partial";

fn names() -> [String; 2] {
    [edge(3, "e3c8"), cloud(3, "e3c8")]
}

fn partials() -> [String; 3] {
    let [e, c] = names();
    [
        format!("{e}.partial"),
        format!("{c}.partial"),
        JOURNAL.into(),
    ]
}

/// Both files of the pair, whole.
fn pair(bench: &Bench, folder: &str) -> [Vec<u8>; 2] {
    names().map(|n| fs::read(bench.path(folder).join(n)).unwrap())
}

/// A model, and in the folder `whole` what an unbroken run makes of it.
fn bench(shape: &LlamaShape) -> Bench {
    let bench = Bench::new(shape);
    let args = [&ARGS[..], &["--out", "whole", "-t", "3"]].concat();
    bench.run(&args).ok();
    bench
}

fn small() -> LlamaShape {
    LlamaShape {
        n_embd: 256,
        ..LlamaShape::tiny()
    }
}

/// Long enough to be stopped in the middle, more than once.
fn longer() -> LlamaShape {
    LlamaShape {
        n_layer: 8,
        n_embd: 256,
        n_ff: 1024,
        ..LlamaShape::tiny()
    }
}

/// Runs with files limited to `blocks` of 512 bytes, as on a full disk: the limit answers with
/// an error once `SIGXFSZ` is ignored.
fn full_disk(bench: &Bench, blocks: u32) -> Run {
    let script = format!(r#"trap '' XFSZ; ulimit -f {blocks}; exec "$0" "$@""#);
    let mut command = Command::new("sh");
    command
        .args(["-c", &script, env!("CARGO_BIN_EXE_splitconv")])
        .args(ARGS)
        .current_dir(bench.dir.path());
    Run::of(command)
}

/// Leaves a run that has finished some tensors, and returns how many.
fn stopped(bench: &Bench) -> usize {
    let run = full_disk(bench, 400);
    run.fails_with(&[
        "cannot write",
        "make room",
        "File too large",
        "of 57 tensors are finished and kept",
        "--fresh",
    ]);
    for name in partials() {
        assert!(bench.path(&name).exists(), "{name}");
    }
    for name in names() {
        assert!(!bench.path(&name).exists(), "{name}");
    }
    let before = run.stderr.split(" of 57 tensors").next().unwrap();
    let done = before.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((3..57).contains(&done), "{done}");
    done
}

/// The folder holds the pair as the unbroken run wrote it, and nothing else of ours.
#[track_caller]
fn is_whole(bench: &Bench) {
    let [e, c] = names();
    assert_eq!(bench.names(), [&e, &c, "m.gguf", "whole"]);
    assert_eq!(pair(bench, "."), pair(bench, "whole"));
}

fn remove_pair(bench: &Bench) {
    for name in names() {
        fs::remove_file(bench.path(&name)).unwrap();
    }
}

#[test]
fn a_full_disk_costs_only_the_tensor_at_hand() {
    let bench = bench(&small());
    let done = stopped(&bench);
    // Full again before anything new is finished: nothing is lost.
    assert!(stopped(&bench) >= done);
    let run = bench.run(&[&ARGS[..], &["--json"]].concat()).ok();
    let said = format!("{done} of 57 tensors are finished");
    assert!(run.stderr.contains("going on"), "{}", run.stderr);
    let resumed = run.json()["resumed_tensors"].as_u64().unwrap();
    assert!(resumed >= done as u64, "{said}: {resumed}");
    is_whole(&bench);
    let [e, c] = names();
    bench.run(&["verify", &e, &c]).ok();
}

/// What the journal says is believed only as far as the bytes bear it out.
#[test]
fn damage_is_made_good() {
    let bench = bench(&small());
    let header = bench.open(&format!("whole/{}", names()[0])).data_start();
    let [e, _, journal] = partials();
    let resume = |says: &str| {
        let run = bench.run(&ARGS).ok();
        assert!(run.stderr.contains(says), "{says}: {}", run.stderr);
        is_whole(&bench);
        remove_pair(&bench);
    };
    stopped(&bench);
    flip(&bench.path(&e), header + 100);
    resume("1 were damaged");
    stopped(&bench);
    let shorter = File::options().write(true).open(bench.path(&e)).unwrap();
    shorter.set_len(header as u64).unwrap();
    resume("were damaged");
    stopped(&bench);
    fs::remove_file(bench.path(&e)).unwrap();
    resume("were damaged");
    // A journal that ends in the middle of a line.
    stopped(&bench);
    let text = fs::read(bench.path(&journal)).unwrap();
    fs::write(bench.path(&journal), &text[..text.len() - 7]).unwrap();
    resume("going on");
    for text in ["", "nonsense\n", "\0\0\0\0"] {
        stopped(&bench);
        fs::write(bench.path(&journal), text).unwrap();
        resume("");
    }
    stopped(&bench);
    fs::remove_file(bench.path(&journal)).unwrap();
    resume("");
}

#[test]
fn what_changed_is_named_and_begun_anew() {
    let bench = bench(&small());
    let runs = |more: &[&str], says: &[&str]| {
        let run = bench.run(&[&ARGS[..], more].concat()).ok();
        for word in says {
            assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
        }
    };
    stopped(&bench);
    runs(&["--fresh"], &["starting over", "--fresh"]);
    is_whole(&bench);
    remove_pair(&bench);
    // Another recipe under the same name.
    stopped(&bench);
    runs(
        &["--tensor-type", "ffn_down=Q6_K"],
        &["starting over", "the types"],
    );
    remove_pair(&bench);
    // The same bytes, but nobody can know that.
    stopped(&bench);
    let source = File::options().write(true).open(bench.path("m.gguf"));
    let source = source.unwrap();
    let before = source.metadata().unwrap().modified().unwrap();
    source
        .set_modified(before + Duration::from_secs(1))
        .unwrap();
    runs(&[], &["starting over", "the source's time of change"]);
    is_whole(&bench);
    remove_pair(&bench);
    // Another model.
    stopped(&bench);
    let other = LlamaShape { seed: 7, ..small() };
    other.write(&bench.path("m.gguf")).unwrap();
    runs(&[], &["starting over"]);
    assert_ne!(pair(&bench, "."), pair(&bench, "whole"));
}

/// A run, and a way to wait until it has finished some tensors.
fn start(bench: &Bench, more: &[&str]) -> std::process::Child {
    let mut command = bench.command(&[&ARGS[..], more].concat());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |t| t.lines().count())
}

fn wait_for_lines(bench: &Bench, wanted: usize) {
    let begun = Instant::now();
    while lines(&bench.path(JOURNAL)) < wanted {
        assert!(begun.elapsed() < Duration::from_mins(1));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Killed at whatever moment: never a file under a final name that is not whole, and what comes
/// out in the end is what an unbroken run writes.
#[test]
fn killed_again_and_again() {
    let bench = bench(&longer());
    let begun = Instant::now();
    bench.run(&[&ARGS[..], &["-t", "2"]].concat()).ok();
    let takes = begun.elapsed();
    remove_pair(&bench);
    let (mut seed, mut kills, mut resumed) = (1_u64, 0, 0);
    while kills < 20 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut child = start(&bench, &["-t", "2"]);
        // Short ones too: most of them stop a run that has gone on.
        std::thread::sleep(takes.mul_f64((seed >> 40) as f64 / f64::from(1 << 24) * 0.6));
        child.kill().unwrap();
        let ended = child.wait_with_output().unwrap();
        resumed += usize::from(
            String::from_utf8(ended.stderr)
                .unwrap()
                .contains("going on"),
        );
        for name in names() {
            if bench.path(&name).exists() {
                bench.run(&["verify", &name]).ok();
            }
        }
        if ended.status.success() {
            is_whole(&bench);
            remove_pair(&bench);
        } else {
            kills += 1;
        }
    }
    assert!(resumed > 3, "{resumed} runs went on");
    if !names().iter().all(|n| bench.path(n).exists()) {
        bench.run(&ARGS).ok();
    }
    is_whole(&bench);
}

/// Ctrl-C and `kill`: an error in words that says what stays, and files of these names as they
/// were.
#[test]
fn interrupted() {
    // So long that it is still at work when `kill` has started on a busy machine.
    let bench = bench(&LlamaShape {
        n_layer: 160,
        ..longer()
    });
    let [e, _] = names();
    fs::write(bench.path(&e), "mine").unwrap();
    for signal in ["-INT", "-TERM"] {
        // On a busy machine it may have finished before the signal comes: then once more.
        let mut tries = 0;
        let (ended, text) = loop {
            let before = lines(&bench.path(JOURNAL));
            let child = start(&bench, &["-t", "1", "--force"]);
            // Until it writes, it may not have got to listen for signals.
            wait_for_lines(&bench, before + 4);
            let mut kill = Command::new("kill");
            kill.args([signal, &child.id().to_string()]);
            let killed = kill.status().unwrap().success();
            let ended = child.wait_with_output().unwrap();
            let text = String::from_utf8(ended.stderr).unwrap();
            tries += 1;
            if tries < 5 && ended.status.success() {
                fs::write(bench.path(&e), "mine").unwrap();
                continue;
            }
            assert!(killed, "{text}");
            break (ended.status, text);
        };
        assert_eq!(ended.code(), Some(1), "{text}");
        for word in [
            "splitconv: error: interrupted; ",
            "tensors are finished and kept",
            "the same command goes on",
            JOURNAL,
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert_eq!(fs::read(bench.path(&e)).unwrap(), b"mine");
    }
    // What waits is no model, whatever it is called.
    let [partial, ..] = partials();
    fs::copy(bench.path(&partial), bench.path("x.gguf")).unwrap();
    bench.run(&["inspect", "x.gguf"]).fails_with(&["x.gguf"]);
    fs::remove_file(bench.path("x.gguf")).unwrap();
    bench.run(&[&ARGS[..], &["--force"]].concat()).ok();
    is_whole(&bench);
}

/// No signal, no wrong bytes: an error; and it goes on when the source is back.
#[test]
fn a_source_cut_short_while_it_is_read() {
    let bench = bench(&longer());
    let path = bench.path("m.gguf");
    let whole = fs::read(&path).unwrap();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let child = start(&bench, &["-t", "1"]);
    wait_for_lines(&bench, 5);
    let source = File::options().write(true).open(&path).unwrap();
    source.set_len(4096).unwrap();
    let ended = child.wait_with_output().unwrap();
    let text = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{text}");
    for word in ["m.gguf", "changed while it was read", "finished and kept"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    fs::write(&path, whole).unwrap();
    source.set_modified(modified).unwrap();
    let run = bench.run(&ARGS).ok();
    assert!(run.stderr.contains("going on"), "{}", run.stderr);
    is_whole(&bench);
}

/// Killed while the two names were given: the next run does the rest, whatever was done.
#[test]
fn killed_while_renaming() {
    let bench = bench(&small());
    let [e, c] = names();
    let [partial_e, partial_c, journal] = partials();
    let old = |name: &str| format!("{name}.splitconv-old");
    let rename = |a: &str, b: &str| fs::rename(bench.path(a), bench.path(b)).unwrap();
    for stage in 0..4 {
        // A folder in the way leaves all but the names; the journal's last line takes back that
        // they were about to be given. Without it the journal is as a kill would leave it.
        fs::create_dir(bench.path(&c)).unwrap();
        let forced = [&ARGS[..], &["--force"]].concat();
        bench.run(&forced).fails_with(&[&c, "57 of 57"]);
        fs::remove_dir(bench.path(&c)).unwrap();
        let text = fs::read_to_string(bench.path(&journal)).unwrap();
        let end = text.trim_end().rfind('\n').unwrap() + 1;
        assert!(text[end..].contains("withdraw"), "{text}");
        fs::write(bench.path(&journal), &text[..end]).unwrap();
        fs::write(bench.path(&c), "old").unwrap();
        if stage > 0 {
            fs::write(bench.path(&old(&e)), "old").unwrap();
            rename(&partial_e, &e);
        }
        if stage > 1 {
            rename(&c, &old(&c));
        }
        if stage > 2 {
            rename(&partial_c, &c);
        }
        let run = bench.run(&ARGS).ok();
        assert!(run.stderr.contains("renamed"), "{stage}: {}", run.stderr);
        is_whole(&bench);
        remove_pair(&bench);
    }
    // Another file in the place of a finished one is nobody's pair.
    fs::create_dir(bench.path(&c)).unwrap();
    bench
        .run(&[&ARGS[..], &["--force"]].concat())
        .fails_with(&[&c]);
    fs::remove_dir(bench.path(&c)).unwrap();
    let text = fs::read_to_string(bench.path(&journal)).unwrap();
    let end = text.trim_end().rfind('\n').unwrap() + 1;
    fs::write(bench.path(&journal), &text[..end]).unwrap();
    flip(&bench.path(&partial_c), 0);
    bench
        .run(&ARGS)
        .fails_with(&[&partial_c, JOURNAL, "remove"]);
}

/// The number of threads does not show in the bytes.
#[test]
fn threads_do_not_show() {
    let bench = bench(&small());
    for threads in ["1", "2", "7"] {
        let out = format!("t{threads}");
        let args = ["--out", out.as_str(), "-t", threads];
        bench.run(&[&ARGS[..], &args].concat()).ok();
        assert_eq!(pair(&bench, &out), pair(&bench, "whole"), "{threads}");
    }
}
