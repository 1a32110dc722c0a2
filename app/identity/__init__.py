"""Who asks: users, sign-ins and the credentials they show."""
