"""Base against trained: images drawn anew, judged by an independent checker, compared in pairs."""
