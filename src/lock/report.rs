//! `quorate lease`: what is held by whom, and releases by hand.
