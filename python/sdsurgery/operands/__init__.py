"""What stands at an input of a formula besides plain elements, as numbers: encoded weights, products of factors."""
