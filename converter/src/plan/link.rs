//! What lies between the halves.

/// Bytes that a message takes beside its frame: HTTP/2 frame (9), gRPC prefix (5), protobuf
/// fields (12), TLS record (22), TCP/IP (52).
pub const MESSAGE_BYTES: f64 = 100.0;

/// A link: how many bits a second from the edge to the cloud, and how long there and back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bits per second that the edge can send.
    pub uplink_bits_per_s: f64,
    /// Round trip of an empty message, milliseconds.
    pub rtt_ms: f64,
    /// The radio that the rate is of.
    pub radio: Option<Radio>,
}

impl Link {
    /// The same over another radio.
    #[must_use]
    pub fn with_radio(&self, radio: Radio) -> Self {
        Self {
            uplink_bits_per_s: radio.outage_bits_per_s(),
            radio: Some(radio),
            ..*self
        }
    }

    /// Milliseconds until `bytes` have left the edge.
    pub fn send_ms(&self, bytes: f64) -> f64 {
        (bytes + MESSAGE_BYTES) * 8e3 / self.uplink_bits_per_s
    }
}

/// A radio channel with Rayleigh fading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Radio {
    /// Bandwidth W, hertz.
    pub bandwidth_hz: f64,
    /// Mean signal to noise ratio, not in decibels.
    pub snr: f64,
    /// Probability ε that the channel is worse than the rate planned with, above 0 and below 1.
    pub outage: f64,
}

impl Radio {
    /// The ε-outage capacity `C_ε = W·log2(1 + SNR·ln(1/(1−ε)))` in bits per second: with
    /// probability 1 − ε the channel carries more. Under Rayleigh fading the power gain is
    /// exponentially distributed with mean 1, and `−ln(1−ε)` is its ε-quantile (Tse and
    /// Viswanath, Fundamentals of Wireless Communication, section 5.4.1).
    pub fn outage_bits_per_s(&self) -> f64 {
        let gain = -(-self.outage).ln_1p();
        self.bandwidth_hz * (self.snr * gain).ln_1p() / std::f64::consts::LN_2
    }

    /// The ratio with which the ε-outage capacity is `bits_per_s`.
    pub fn snr_for(&self, bits_per_s: f64) -> f64 {
        let gain = -(-self.outage).ln_1p();
        (bits_per_s / self.bandwidth_hz * std::f64::consts::LN_2).exp_m1() / gain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outage_capacity() {
        // 10 MHz, 20 dB, 1 %: gain 0.01005, SNR 1.005, log2(2.005) = 1.0036.
        let radio = Radio {
            bandwidth_hz: 1e7,
            snr: 100.0,
            outage: 0.01,
        };
        assert!((radio.outage_bits_per_s() - 1.003_61e7).abs() < 1e3);
        assert!((radio.snr_for(radio.outage_bits_per_s()) - 100.0).abs() < 1e-9);
        let safer = Radio {
            outage: 0.001,
            ..radio
        };
        assert!(safer.outage_bits_per_s() < radio.outage_bits_per_s() / 5.0);
    }

    #[test]
    fn a_frame_takes_its_bytes_and_the_message_around_it() {
        let link = Link {
            uplink_bits_per_s: 8e3,
            rtt_ms: 5.0,
            radio: None,
        };
        assert_eq!(link.send_ms(400.0), 500.0);
    }
}
