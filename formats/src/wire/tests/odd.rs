//! Rows that a model in order never computes, or hardly ever.

use super::*;

#[test]
fn what_is_not_finite_is_named_in_every_coding() {
    for spec in ALL {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut rows = vec![1.0; 3 * 40];
            rows[2 * 40 + 7] = bad;
            let mut out = vec![1];
            let e = encode(
                &codec(spec),
                &origin(40),
                &rows,
                &mut Scratch::default(),
                &mut out,
            );
            let text = e.unwrap_err().to_string();
            for part in ["row 2", "channel 7", &bad.to_string()] {
                assert!(text.contains(part), "{spec}: {text}");
            }
            assert!(out.is_empty());
        }
    }
}

#[test]
fn rows_of_zeros_and_the_widest_ones_travel() {
    for spec in ALL {
        for width in [1, 16_384] {
            let mut rows = vec![0.0; 2 * width];
            let back = read(&frame(spec, width, &rows), width).unwrap();
            assert_eq!(bits(&back), bits(&rows), "{spec} {width}");
            rows[width - 1] = 22_000.0;
            let back = read(&frame(spec, width, &rows), width).unwrap();
            assert!((back[width - 1] - 22_000.0).abs() < 10.0, "{spec} {width}");
        }
    }
}

#[test]
fn what_is_not_finite_is_still_read() {
    // Earlier releases sent it.
    let mut body = frame("f32", 4, &[1.0; 4]);
    let at = body.len() - 4 - 4;
    body.truncate(at + 4);
    body[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    let back = read(&sealed(body), 4).unwrap();
    assert!(back[..3] == [1.0; 3] && back[3].is_nan());
}

#[test]
fn rows_are_seen_at_a_glance() {
    for spec in ["f32", "f16", "int8", "ts-tabq"] {
        for n in [0, 1, 2, 64] {
            let frame = frame(spec, 8, &vec![0.5; 8 * n as usize]);
            assert_eq!(rows_at_a_glance(&frame), Some(n), "{spec}");
        }
    }
    // Version 2: a number of rows where there is more than one, or none.
    assert_eq!(rows_at_a_glance(&[0xa2, 0x04, 7]), Some(1));
    assert_eq!(rows_at_a_glance(&[0xa2, 0x14, 7, 3]), Some(3));
    for odd in [
        &[][..],
        &[0xa1],
        &[0xa2, 0x14, 7],
        &[0xa3, 4, 7, 1, 1, 1, 1, 1],
    ] {
        assert_eq!(rows_at_a_glance(odd), None, "{odd:?}");
    }
}
