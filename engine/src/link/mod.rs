//! The gRPC link between the halves.
