"""What several test files share: small models, doubles, paths, launches."""
