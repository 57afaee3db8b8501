//! Edge, cloud, both.
