//! TLS, token and Ctrl-C, with real processes.

use std::io::{BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use integration::{Cloud, command, must_json, run, smollm2_pair, wait};

/// A self-signed certificate for this machine, its key and a token, as files.
fn secrets(dir: &Path) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(dir.join("token"), "a-secret-of-this-test\n").unwrap();
    std::fs::write(dir.join("other"), "another-secret\n").unwrap();
}

#[test]
fn tls_and_token_work_and_their_absence_is_refused() {
    let (dir, keys) = (smollm2_pair(), tempfile::tempdir().unwrap());
    secrets(keys.path());
    let file = |name: &str| keys.path().join(name).to_str().unwrap().to_owned();
    let (cert, key, token, other) = (
        file("cert.pem"),
        file("key.pem"),
        file("token"),
        file("other"),
    );
    let args = [
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--token-file",
        &token,
    ];
    let cloud = Cloud::start(dir, &args);
    let port = cloud.address.rsplit(':').next().unwrap();
    let address = format!("localhost:{port}");
    let edge = |more: &[&str]| {
        let mut args = vec![
            "--role",
            "edge",
            "--cloud",
            &address,
            "-p",
            "The capital of France is",
        ];
        args.extend(["-n", "2", "--temp", "0", "--timeout", "10", "--json"]);
        args.extend(more);
        run(dir, "splitrun", &args)
    };
    let good = edge(&["--tls-ca", &cert, "--token-file", &token]);
    assert!(
        good.status.success(),
        "{}",
        String::from_utf8_lossy(&good.stderr)
    );
    for bad in [
        vec!["--tls-ca", &cert, "--token-file", &other],
        vec!["--tls-ca", &cert],
        vec!["--token-file", &token],
    ] {
        let out = edge(&bad);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{bad:?}: {error}");
        assert!(error.contains(&address), "{bad:?}: {error}");
    }
}

#[test]
fn other_machines_are_served_with_tls_and_token_only() {
    let dir = smollm2_pair();
    let out = run(
        dir,
        "splitrun",
        &["--role", "cloud", "--listen", "0.0.0.0:0"],
    );
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{error}");
    assert!(
        error.contains("--tls-cert") && error.contains("--insecure"),
        "{error}"
    );
    let out = run(
        dir,
        "splitrun",
        &["--role", "edge", "--cloud", "192.0.2.1:7433", "-p", "x"],
    );
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{error}");
    assert!(error.contains("--insecure"), "{error}");
}

fn interrupt(child: &Child) {
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn ctrl_c_ends_an_answer_and_then_the_cloud_in_order() {
    let dir = smollm2_pair();
    let mut cloud = Cloud::start(dir, &["--max-sessions", "1"]);
    let mut edge = command("splitrun")
        .args([
            "--role",
            "edge",
            "--cloud",
            &cloud.address,
            "-p",
            "Once upon a time",
        ])
        .args(["-n", "4000", "--ignore-eos", "--temp", "0"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(edge.stdout.take().unwrap());
    out.read_exact(&mut [0; 20]).unwrap();
    interrupt(&edge);
    assert_eq!(wait(&mut edge, Duration::from_secs(10)).code(), Some(0));

    // The one session is free again.
    let args = [
        "--role",
        "edge",
        "--cloud",
        &cloud.address,
        "-p",
        "x",
        "-n",
        "1",
        "--json",
    ];
    must_json(dir, "splitrun", &args);
    cloud.interrupt();
    assert_eq!(cloud.wait(Duration::from_secs(10)).code(), Some(0));
}
