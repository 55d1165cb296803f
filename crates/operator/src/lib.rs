//! The controllers of Cistern: the only code that changes a cluster.
